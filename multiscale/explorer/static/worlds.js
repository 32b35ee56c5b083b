/**
 * World texts: `3`, a drift `3d0.4:-0.2`, a mix `3~7:0.25`, styles of layers `3_7@4-6`, or these together.
 *
 * Parts: {seed, drift: [x, y], mixes: [{term, weight}], styles: [{term, first, last}]}; a term is the text of a latent.
 */
import { clamp } from "./view.js";
import { short } from "./address.js";

export const MAX_SEED = 2 ** 32 - 1;
export const MAX_DRIFT = 100;
const NUMBER = String.raw`-?(?:\d{1,6}(?:\.\d{0,12})?|\.\d{1,12})(?:e-?\d{1,2})?`;
const LATENT = new RegExp(`^(\\d{1,10})(?:d(${NUMBER}):(${NUMBER}))?$`);
const MIX = new RegExp(`^(.+):(${NUMBER})$`);
const STYLE = /^([^@]+)@(\d{1,3})(?:-(\d{1,3}))?$/;

/** Text -> parts, or null if it is not a world. */
export function parse(text) {
  const [base, ...styles] = text.trim().split("_");
  const [first, ...mixes] = base.split("~");
  const latent = parseLatent(first);
  const mixed = mixes.map((mix) => {
    const match = MIX.exec(mix);
    return match && parseLatent(match[1]) && { term: match[1], weight: Number(match[2]) };
  });
  const styled = styles.map((style) => {
    const match = STYLE.exec(style);
    if (!match || !parseLatent(match[1])) return null;
    const [low, high] = [Number(match[2]), Number(match[3] ?? match[2])];
    return high < low ? null : { term: match[1], first: low, last: high };
  });
  if (!latent || mixed.includes(null) || styled.includes(null) || mixed.length + styled.length >= 16) return null;
  return { ...latent, mixes: mixed, styles: styled };
}

/** Parts -> text. */
export function format({ seed, drift, mixes, styles }) {
  const moved = drift[0] || drift[1] ? `d${short(drift[0], 4)}:${short(drift[1], 4)}` : "";
  const mixed = mixes.map(({ term, weight }) => `~${term}:${short(weight, 4)}`).join("");
  const styled = styles.map(({ term, first, last }) => `_${term}@${first}-${last}`).join("");
  return `${seed}${moved}${mixed}${styled}`;
}

/** The world of `text` after a drift by (dx, dy); an unreadable text stays as it is. */
export function drifted(text, dx, dy) {
  const parts = parse(text);
  if (!parts) return text;
  const legal = (value) => Number(clamp(value, -MAX_DRIFT, MAX_DRIFT).toFixed(3));
  return format({ ...parts, drift: [legal(parts.drift[0] + dx), legal(parts.drift[1] + dy)] });
}

export const randomWorld = () => String(Math.floor(Math.random() * 100000));

/** Whether `text` is one latent: a seed with or without a drift. */
export const isLatent = (text) => parseLatent(text) !== null;

function parseLatent(text) {
  const match = LATENT.exec(text);
  if (!match || Number(match[1]) > MAX_SEED) return null;
  const drift = [Number(match[2] ?? 0), Number(match[3] ?? 0)];
  return drift.some((v) => Math.abs(v) > MAX_DRIFT) ? null : { seed: Number(match[1]), drift };
}
