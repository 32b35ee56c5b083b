/** The page of an exported model: a view, a world, and the model that renders it here, in a worker. */
import { read, write } from "./address.js";
import { listen } from "./gestures.js";
import { returning } from "./idle.js";
import { fetched } from "./model.js";
import { Motion } from "./motion.js";
import { compose, computed, done, paint, tilesOf } from "./refine.js";
import { box, clamp, constrain, contains, extent, holding, intersect, panBy, pitchOf, rectOf, WORLD, worldAt } from "./view.js";
import { drifted, parse, randomWorld } from "./worlds.js";

const $ = (id) => document.getElementById(id);
const canvas = $("view");
const context = canvas.getContext("2d");
const LEVELS = [[64], [128], [256], [1024, 512]]; // pixels of frames: a draft, then sharper ones; the first that is not too long
const LONGEST_MS = 120000; // of a frame, at rest
const STILL_MS = 250;
const FADE_MS = 200;
const DRIFT_PX = 300; // pixels of a drag per unit of drift
const ZOOM_OCTAVES = 0.5; // of a key
const MOVE_PART = 0.15; // of the canvas, of a key

let model;
let worker;
let state = { view: { zoom: 1, x: 0, y: 0 }, world: "3", trunc: 1 };
let shown = null; // {image, region, missing, ...}: the last frame, the part of the world that it has, tiles that are still to come
let whole = null; // the last that has all of it
let asked = false;
let refused = null; // what the worker has failed at, which is not asked for again
let broken = false;
let turning = false;
let resting = null;
let count = 0;
let moved = 0;
const requests = new Map();
const key = () => `${state.world} ${state.trunc}`;
const wantedNow = () => `${key()} ${JSON.stringify(state.view)} ${canvas.width} ${canvas.height}`;
/** Of the canvas in its own pixels; where the pointer is counts in those of the style sheet. */
const pixels = () => ({ width: canvas.width, height: canvas.height });
const stage = {
  get view() {
    return state.view;
  },
  get size() {
    return { width: canvas.clientWidth, height: canvas.clientHeight };
  },
  get maxZoom() {
    return 2 ** model.octaves;
  },
  move(view) {
    $("hint").classList.add("gone");
    change({ view });
  },
};
const motion = new Motion(stage);

start().catch((error) => fail(`This page cannot work here: ${error.message}.`));

async function start() {
  model = await (await fetched("model.json")).json();
  const { network, sha256, kimg, credit } = model.provenance;
  const licence = (model.licence ? `Licence of the weights: ${model.licence}. ` : "") + (credit ? `Credit: ${credit}.` : "");
  $("credit").textContent = `Rendered in your browser by a generative model. ${licence}`;
  const trained = kimg ? `, after ${Math.round(kimg)} thousand images` : "";
  $("provenance").textContent = `The model: ${network}${trained}, SHA-256 ${sha256}. ${licence}`;
  worker = new Worker("./worker.js", { type: "module" });
  worker.onmessage = ({ data }) => answered(data);
  worker.onerror = (event) => fail(`The model cannot run in this browser: ${event.message ?? "its worker does not start"}.`);
  $("ms").hidden = !new URLSearchParams(location.search).has("debug");
  interact();
  fit(); // the first frame is one of this canvas
  const first = location.hash;
  fromAddress(first);
  returning(() => begin(first));
  new ResizeObserver(resize).observe(canvas);
  window.site = { render, state: () => state, idle, frame: () => shown };
}

function answered(data) {
  if (data.ready) return; // the message goes with the first frame
  if (data.failed) return fail(`The model cannot run in this browser: ${data.failed}.`);
  const request = requests.get(data.id);
  requests.delete(data.id);
  request?.(data);
}

/** Ask the worker for a region; resolves to its answer. */
function ask(world, trunc, region) {
  const id = ++count;
  worker.postMessage({ id, world, trunc, region });
  return new Promise((resolve) => requests.set(id, resolve));
}

/** For tests: whether nothing moves, and the view is there at a level of LEVELS or a later one. */
function idle(level = LEVELS.length - 1) {
  if (motion.active || resting !== null || shown?.wanted !== wantedNow()) return false;
  return shown.level > level || (shown.level === level && !shown.missing.length);
}

/** For tests: the pixels of a view of width x height, as generate.py renders it, as a plain array of RGBA. */
async function render({ world = "0", trunc = 1, zoom = 1, x = 0, y = 0, width = model.resolution, height = width }) {
  const pitch = 1 / (zoom * Math.max(width, height));
  const region = { left: x - (pitch * width) / 2, top: y - (pitch * height) / 2, pitch, width, height };
  const answer = await ask(world, trunc, region);
  if (answer.error || answer.dropped) throw new Error(answer.error ?? "dropped");
  return { pixels: Array.from(answer.pixels), ms: answer.ms };
}

/** The visible part of the world in frames of `side` pixels, not finer than the model has learned or the canvas shows. */
function regionOf(side) {
  const view = extent(state.view, pixels());
  const rect = intersect(view, WORLD);
  const across = Math.max(rect.right - rect.left, rect.bottom - rect.top);
  const coarsest = 1 / model.resolution;
  const finest = 1 / (model.resolution * stage.maxZoom);
  const pitch = clamp(across / side, Math.max(finest, pitchOf(state.view, pixels())), coarsest);
  const along = (length) => Math.max(Math.ceil(length / pitch - 1e-6), 1);
  return { left: rect.left, top: rect.top, pitch, width: along(rect.right - rect.left), height: along(rect.bottom - rect.top) };
}

/**
 * A frame of a level, {region, wide, high, missing: all of its tiles}; null if it would take too long, or is no sharper than the one
 * shown.
 */
function planned(level) {
  const time = level === 0 ? 0 : shown.time; // a draft is whole
  for (const side of LEVELS[level]) {
    const region = regionOf(side);
    if (level > 0 && shown.region.pitch <= region.pitch * 1.0001) return null;
    const { wide, high, tiles } = tilesOf(model, region, time);
    const sum = tiles.reduce((pixels, tile) => pixels + computed(model, tile.width, tile.height), 0);
    if (time * sum <= LONGEST_MS) return { region, wide, high, missing: tiles };
  }
  return null;
}

/** The part of the view, 0 to 1, that is as sharp as it will be. */
function progress() {
  if (shown?.wanted !== wantedNow()) return 0;
  const sharper = LEVELS.some((_, level) => level > shown.level && planned(level));
  return sharper ? 0 : done(shown);
}

/** What is said of a view at rest that is not as sharp as it will be. */
function sharpening() {
  if (!shown || broken || refused === wantedNow() || motion.active || resting !== null) return "";
  const part = progress();
  return part < 1 ? `· sharpening ${Math.floor(100 * part)} %` : "";
}

/** Ask for what is wanted next, if there is anything: a frame, or a tile of it, so that what the visitor does comes in between. */
async function next() {
  if (asked || broken || !parse(state.world)) return;
  const wanted = wantedNow();
  if (wanted === refused) return;
  const same = shown?.wanted === wanted;
  if (same && (performance.now() - moved < STILL_MS || document.hidden)) {
    if (!document.hidden) setTimeout(next, STILL_MS);
    return;
  }
  let frame = same && shown.missing.length ? shown : null;
  while (!frame) {
    const level = same ? shown.level + 1 : 0;
    if (level === LEVELS.length) return;
    const plan = planned(level);
    if (plan) {
      const [image, sharp] = [0, 1].map(() => new OffscreenCanvas(plan.region.width, plan.region.height));
      frame = { ...plan, image, sharp, wanted, level, of: key() };
    } else shown.level = level;
  }
  const [tile] = frame.missing;
  const { left, top, pitch } = frame.region;
  const { width, height } = tile;
  asked = true;
  const answer = await ask(state.world, state.trunc, { left: left + pitch * tile.x, top: top + pitch * tile.y, pitch, width, height });
  asked = false;
  if (broken) return;
  if (answer.error) {
    refused = wanted;
    say(answer.error);
  } else if (!answer.dropped) {
    if (frame !== shown) replace(frame);
    frame.missing.shift();
    frame.sharp.getContext("2d").putImageData(new ImageData(answer.pixels, width, height), tile.x, tile.y);
    if (frame.missing.length) compose(frame);
    else [frame.image, frame.under] = [frame.sharp, null];
    frame.time = answer.ms / computed(model, width, height);
    $("ms").textContent = `${width} × ${height} of ${frame.region.width} × ${frame.region.height} pixels in ${answer.ms.toFixed(0)} ms`;
    say("");
    wake();
  }
  next();
}

/** Show a frame, of which the first tile is there: an only one is faded in, of several each comes into what was shown before. */
function replace(frame) {
  const before = frame.level > 0 ? { image: shown.image, region: shown.region } : null;
  frame.under = frame.missing.length > 1 ? before : null; // also to be saved until the frame is whole
  if (!frame.under && !motion.calm.matches) frame.before = before;
  frame.born = performance.now();
  shown = frame;
  if (contains(rectOf(frame.region), WORLD)) whole = frame;
}

/** Draw what there is where it belongs now; returns whether a sharper frame is still fading in. */
function draw() {
  const pitch = pitchOf(state.view, pixels());
  const { left, top } = extent(state.view, pixels());
  context.reset();
  context.beginPath(); // a frame's last pixels may reach beyond the world
  context.rect(...box({ rect: WORLD, pitch, width: 1 / pitch, height: 1 / pitch }, { rect: { left, top }, pitch }));
  context.clip();
  const faded = shown?.before ? Math.min((performance.now() - shown.born) / FADE_MS, 1) : 1;
  for (const frame of [whole?.of === shown?.of ? whole : null, faded < 1 ? shown.before : null, shown].filter(Boolean)) {
    context.globalAlpha = frame === shown ? faded : 1;
    paint(context, frame, { left, top, pitch });
  }
  return faded < 1;
}

/** Draw with the screen's next frame, and on as long as the view moves by itself. */
function wake() {
  if (turning) return;
  turning = true;
  requestAnimationFrame((now) => {
    turning = false;
    motion.step(now);
    if (draw() || motion.active) wake();
    $("progress").textContent = sharpening();
  });
}

function change(part) {
  state = { ...state, ...part };
  state.view = constrain(state.view, stage.maxZoom);
  moved = performance.now();
  clearTimeout(resting); // browsers bound how often an address may change
  resting = setTimeout(rest, STILL_MS);
  show();
  wake();
  next();
}

function rest() {
  resting = null;
  wake();
  history.replaceState(null, "", `#${write({ ...state, network: null, compare: null })}`);
}

function show() {
  if (document.activeElement !== $("world")) $("world").value = state.world;
  $("world").ariaInvalid = String(!parse($("world").value));
  $("world").setCustomValidity(parse($("world").value) ? "" : "A seed such as 3, or a mix such as 3~7:0.25");
  $("trunc").value = state.trunc;
  const mix = parse(state.world)?.mixes[0];
  $("mix").disabled = !mix;
  $("mix").value = mix ? mix.weight : 0;
  $("shown").textContent = `World ${state.world} ·`;
  $("zoom").textContent = zoomOf(state.view.zoom);
  $("place").textContent = placeOf(state.view);
  $("in").disabled = state.view.zoom >= stage.maxZoom;
  $("out").disabled = state.view.zoom <= 1;
}

const zoomOf = (zoom) => `${zoom.toFixed(zoom < 100 ? 2 : 0)}×`;

/** Zoom and middle of a view in writing, to a hundredth of what it shows. */
function placeOf({ zoom, x, y }) {
  const digits = 2 + Math.ceil(Math.log10(zoom));
  const [right, down] = [x, y].map((value) => value.toFixed(digits).replace(/^-(0\.?0*$)/, "$1").replace("-", "−"));
  return `${zoomOf(zoom)} at ${right}, ${down}`;
}

function fromAddress(hash) {
  const { view, world, trunc } = read(hash);
  const given = new URLSearchParams(hash.slice(1));
  motion.stop();
  change({ view, world: given.has("w") && parse(world) ? world : "3", trunc: clamp(trunc, -2, 2) });
}

/** Show the page as it was opened. */
function begin(hash) {
  $("help").close();
  document.activeElement.blur(); // the box of the world would keep its text
  $("hint").classList.remove("gone");
  if (refused) say("");
  fromAddress(hash);
}

function fit() {
  canvas.width = Math.max(Math.round(canvas.clientWidth * devicePixelRatio), 1);
  canvas.height = Math.max(Math.round(canvas.clientHeight * devicePixelRatio), 1);
}

function resize() {
  fit();
  draw(); // at once: a canvas of another size is empty
  change({});
}

function interact() {
  const zoom = (octaves) => animate(() => motion.zoom(stage.size.width / 2, stage.size.height / 2, octaves));
  const glide = (x, y) => animate(() => motion.glide(x * stage.size.width * MOVE_PART, y * stage.size.height * MOVE_PART));
  const home = () => animate(() => motion.fly({ zoom: 1, x: 0, y: 0 }));
  const random = () => change({ world: randomWorld() });
  const help = () => $("help").showModal();
  let [grabbed, before] = [null, null];
  listen(canvas, {
    touch: () => {
      motion.stop();
      before = state.world;
    },
    zoom: (px, py, octaves) => animate(() => motion.zoom(px, py, octaves)),
    pan: (dx, dy) => stage.move(panBy(state.view, stage.size, dx, dy, stage.maxZoom)),
    grab: (px, py) => (grabbed = { ...worldAt(state.view, stage.size, px, py), zoom: state.view.zoom }),
    pinch: (px, py, factor) => stage.move(holding(grabbed, stage.size, px, py, grabbed.zoom * factor, stage.maxZoom)),
    fling: (vx, vy) => animate(() => motion.fling(vx, vy)),
    drift: (dx, dy) => change({ world: drifted(before, dx / DRIFT_PX, dy / DRIFT_PX) }),
    drifted: () => {},
  });
  addEventListener("hashchange", () => fromAddress(location.hash));
  addEventListener("visibilitychange", next); // nothing is refined where nobody looks
  $("world").addEventListener("input", () => parse($("world").value) ? change({ world: $("world").value.trim() }) : show());
  $("trunc").addEventListener("input", () => change({ trunc: Number($("trunc").value) }));
  $("mixed").addEventListener("click", () => {
    const [base] = state.world.split(/[~_]/);
    change({ world: `${base}~${randomWorld()}:0.5` });
  });
  $("mix").addEventListener("input", () => change({ world: state.world.replace(/(~[^~_]+):[^~_:]+/, `$1:${Number($("mix").value)}`) }));
  $("random").addEventListener("click", random);
  $("in").addEventListener("click", () => zoom(1));
  $("out").addEventListener("click", () => zoom(-1));
  $("whole").addEventListener("click", home);
  $("save").addEventListener("click", save);
  $("ask").addEventListener("click", help);
  $("close").addEventListener("click", () => $("help").close());
  $("controls").addEventListener("submit", (event) => event.preventDefault()); // Return in the box
  const keys = {
    "+": () => zoom(ZOOM_OCTAVES),
    "=": () => zoom(ZOOM_OCTAVES),
    "-": () => zoom(-ZOOM_OCTAVES),
    ArrowLeft: () => glide(1, 0),
    ArrowRight: () => glide(-1, 0),
    ArrowUp: () => glide(0, 1),
    ArrowDown: () => glide(0, -1),
    0: home,
    r: random,
    h: help,
    "?": help,
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
    if (event.target.matches("input:not([type=range])")) return;
    if (event.target.type === "range" && event.key.startsWith("Arrow")) return;
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}

/** Begin a motion, and draw it. */
function animate(begin) {
  begin();
  wake();
}

/** The frame that is shown, with the model's own pixels, as a PNG; until it is whole, the one before. */
function save() {
  if (!shown) return;
  const { image } = shown.under ?? shown;
  image.convertToBlob({ type: "image/png" }).then((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${model.title}-${state.world.replaceAll(":", "=")}-${state.view.zoom.toFixed(2)}x.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

function say(text) {
  $("message").textContent = text;
}

function fail(text) {
  if (broken) return;
  broken = true;
  say(text);
  document.body.classList.add("failed");
}
