/** What the page says about the picture: the status line, the canvases' labels, the frame of a film or an image. */
import { clamp, framed, screenAt } from "./view.js";

const $ = (id) => document.getElementById(id);

/** A checkpoint in a few characters. */
export const checkpointName = ({ name, kimg }) =>
  kimg && /^generator-\d+$/.test(name) ? `${Number(kimg.toFixed(1))} kimg` : name;

/** Bring everything up to date with `app`; `rate`: frames received in the last second. */
export function readOut(app, rate) {
  const { view, network } = app.state;
  const first = app.shown[0];
  const digits = clamp(Math.ceil(Math.log10(view.zoom)) + 3, 3, 8);
  const number = (value) => value.toFixed(digits).replace("-", "\u2212");
  const progress = Math.min(...app.shown.map((panel) => panel.progress));
  const octaves = app.network(network)?.octaves;
  put($("s-zoom"), `${view.zoom.toFixed(view.zoom < 100 ? 2 : 1)}×`);
  put($("s-octave"), octaves === undefined ? "" : `octave ${Math.log2(view.zoom).toFixed(2)} of ${octaves}`);
  put($("s-centre"), `centre ${number(view.x)}, ${number(view.y)}`);
  put($("s-pixels"), octaves === undefined ? "" : pixels(app, first));
  put($("s-detail"), app.moving || progress > 0.999 || !first.last ? "" : `sharpening ${Math.floor(progress * 100)} %`);
  put($("s-ms"), first.last ? `rendered in ${first.last.ms.toFixed(first.last.ms < 10 ? 1 : 0)} ms` : "");
  put($("s-fps"), rate ? `${rate} frame${rate > 1 ? "s" : ""}/s` : "");
  put($("error-db"), first.errorDb === null ? "measuring…" : decibels(first));
  app.shown.forEach((panel, i) => label(app, panel, i));
  outline(app);
}

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const decibels = (panel) => `${panel.errorDb.toFixed(1)}\u00a0dB`;

/** How the canvas's pixels compare with the learned ones. */
function pixels(app, panel) {
  const times = panel.enlargement;
  if (times < 1.0005) return "learned pixels";
  return `${app.state.extrapolate ? "extrapolated" : "enlarged"} ${times.toFixed(1)}×`;
}

/** World, and what else tells this canvas from the other. */
function label(app, panel, i) {
  const { compare, network } = app.state;
  const shown = i ? compare : app.state;
  const parts = [`world ${shown.world}`];
  if (compare && compare.network !== network) parts.push(checkpointName(app.network(shown.network) ?? { name: "" }));
  if (compare && app.info) parts.push(pixels(app, panel));
  if (panel.errorDb !== null) parts.push(`cross-scale error ${decibels(panel)}`);
  const element = panel.canvas.parentElement.querySelector(".label");
  if (element.dataset.text === parts.join("|")) return;
  element.dataset.text = parts.join("|");
  const pieces = parts.map((text, j) => Object.assign(document.createElement(j ? "span" : "b"), { textContent: text }));
  element.replaceChildren(...pieces);
}

/** Where a film's or an image's edges lie, while its section is open. */
function outline(app) {
  const open = (id) => !$("side").hidden && $(`${id}-section`).open;
  const kind = open("film") ? "film" : open("save") ? "image" : null;
  const aspect = kind && (kind === "film" ? app.film : app.saving).aspect();
  $("frame").hidden = !aspect;
  if (!aspect) return;
  const { view } = app.state;
  const rect = framed(view, app.size, ...aspect);
  const from = screenAt(view, app.size, rect.left, rect.top);
  const to = screenAt(view, app.size, rect.right, rect.bottom);
  Object.assign($("frame").style, {
    left: `${from.px}px`,
    top: `${from.py}px`,
    width: `${to.px - from.px}px`,
    height: `${to.py - from.py}px`,
  });
  put($("frame").firstElementChild, kind);
}
