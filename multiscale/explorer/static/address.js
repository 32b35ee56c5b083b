/** The page's state as the text behind # in its address: what is shared, reloaded, bookmarked and undone. */

/** Shortest decimal text with at most `digits` after the point. */
export const short = (value, digits = 9) => String(Number(value.toFixed(digits)));

const FIELDS = {
  z: { of: (s) => String(Number(s.view.zoom.toPrecision(10))), into: (s, text) => (s.view.zoom = number(text, 1)) },
  x: { of: (s) => short(s.view.x, 10), into: (s, text) => (s.view.x = number(text, 0)) },
  y: { of: (s) => short(s.view.y, 10), into: (s, text) => (s.view.y = number(text, 0)) },
  w: { of: (s) => s.world, into: (s, text) => (s.world = text) },
  t: { of: (s) => short(s.trunc), into: (s, text) => (s.trunc = number(text, 1)) },
  n: { of: (s) => s.network, into: (s, text) => (s.network = text) },
  w2: { of: (s) => s.compare?.world, into: (s, text) => ((s.compare ??= {}).world = text) },
  n2: { of: (s) => s.compare?.network, into: (s, text) => ((s.compare ??= {}).network = text) },
  ext: { of: (s) => (s.extrapolate ? "1" : null), into: (s, text) => (s.extrapolate = text === "1") },
  err: { of: (s) => (s.error ? "1" : null), into: (s, text) => (s.error = text === "1") },
};

/** State {view, world, trunc, network, compare: {world, network} | null, extrapolate, error} -> text without the #. */
export function write(state) {
  return Object.entries(FIELDS)
    .map(([key, field]) => [key, field.of(state)])
    .filter(([, text]) => text !== null && text !== undefined)
    .map(([key, text]) => `${key}=${encodeURIComponent(text).replaceAll("%3A", ":").replaceAll("%40", "@")}`)
    .join("&");
}

/** The inverse of `write`; what is missing or cannot be read has its default (network null: the server's). */
export function read(text) {
  const state = {
    view: { zoom: 1, x: 0, y: 0 },
    world: "0",
    trunc: 1,
    network: null,
    compare: null,
    extrapolate: false,
    error: false,
  };
  for (const [key, value] of new URLSearchParams(text.replace(/^#/, "").replaceAll("+", "%2B"))) {
    if (Object.hasOwn(FIELDS, key)) FIELDS[key].into(state, value);
  }
  if (state.compare) state.compare = { world: state.world, network: state.network, ...state.compare };
  return state;
}

function number(text, otherwise) {
  const value = text.trim() === "" ? NaN : Number(text);
  return Number.isFinite(value) ? value : otherwise;
}
