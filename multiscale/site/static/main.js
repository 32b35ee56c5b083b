/** The page of an exported model: a view, a world, and the model that renders it here, in a worker. */
import { read, write } from "./address.js";
import { clamp, constrain, extent, intersect, panBy, pitchOf, WORLD, zoomAbout } from "./view.js";
import { parse, randomWorld } from "./worlds.js";

const $ = (id) => document.getElementById(id);
const canvas = $("view");
const context = canvas.getContext("2d");
const DRAFT_PX = 64;
const SHARP_PX = [128, 256, 512, 1024];
const PATIENCE_MS = 3000; // for a frame that nothing interrupts once it is begun
const STILL_MS = 250;

let model;
let worker;
let state = { view: { zoom: 1, x: 0, y: 0 }, world: "3", trunc: 1 };
let shown = null; // {image, rect, key}: the last frame and the part of the world that it has
let asked = null; // {id, key, level}
let broken = false;
let count = 0;
let moved = 0;
const requests = new Map();
const key = () => `${state.world} ${state.trunc}`;
const size = () => ({ width: canvas.width, height: canvas.height });
const maxZoom = () => 2 ** model.octaves;

start().catch((error) => fail(`This page cannot work here: ${error.message}.`));

async function start() {
  model = await (await fetch("./model.json")).json();
  $("name").textContent = document.title = model.name;
  $("licence").textContent = model.licence ? `Licence of the weights: ${model.licence}.` : "";
  worker = new Worker("./worker.js", { type: "module" });
  worker.onmessage = ({ data }) => answered(data);
  worker.onerror = (event) => fail(`The model cannot run in this browser: ${event.message ?? "its worker does not start"}.`);
  listen();
  fromAddress();
  resize();
  window.site = { render, state: () => state, idle: () => asked === null && shown?.level === lastLevel() };
}

function answered(data) {
  if (data.ready) return say("");
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

/** For tests: the pixels of a view of width x height, as generate.py renders it, as a plain array of RGBA. */
async function render({ world = "0", trunc = 1, zoom = 1, x = 0, y = 0, width = model.resolution, height = width }) {
  const pitch = 1 / (zoom * Math.max(width, height));
  const region = { left: x - (pitch * width) / 2, top: y - (pitch * height) / 2, pitch, width, height };
  const answer = await ask(world, trunc, region);
  if (answer.error || answer.dropped) throw new Error(answer.error ?? "dropped");
  return { pixels: Array.from(answer.pixels), ms: answer.ms };
}

const lastLevel = () => SHARP_PX.length;

/** The frame that is wanted at a level: the visible part of the world, not finer than the model has learned. */
function regionAt(level) {
  const view = extent(state.view, size());
  const rect = intersect(view, WORLD);
  const side = level === 0 ? DRAFT_PX : SHARP_PX[level - 1];
  const across = Math.max(rect.right - rect.left, rect.bottom - rect.top);
  const coarsest = 1 / model.resolution;
  const finest = 1 / (model.resolution * maxZoom());
  const pitch = clamp(across / side, Math.max(finest, pitchOf(state.view, size())), coarsest);
  const pixels = (length) => Math.max(Math.round(length / pitch), 1);
  return { left: rect.left, top: rect.top, pitch, width: pixels(rect.right - rect.left), height: pixels(rect.bottom - rect.top) };
}

/** Ask for the next frame that is wanted, if there is one. */
async function next() {
  if (asked || broken || !parse(state.world)) return;
  const wanted = `${key()} ${JSON.stringify(state.view)} ${canvas.width} ${canvas.height}`;
  let level = shown?.wanted === wanted ? shown.level + 1 : 0;
  if (level > lastLevel()) return;
  if (level > 0 && performance.now() - moved < STILL_MS) {
    setTimeout(next, STILL_MS);
    return;
  }
  const region = regionAt(level);
  if (level > 0 && shown.region.pitch <= region.pitch * 1.0001) {
    shown.level = level;
    return next();
  }
  if (level > 1 && shown.time * region.width * region.height > PATIENCE_MS) {
    shown.level = lastLevel();
    return;
  }
  asked = { wanted, level };
  const answer = await ask(state.world, state.trunc, region);
  asked = null;
  if (broken) return;
  if (answer.error) say(answer.error);
  else if (!answer.dropped) {
    const image = new OffscreenCanvas(answer.width, answer.height);
    image.getContext("2d").putImageData(new ImageData(answer.pixels, answer.width, answer.height), 0, 0);
    const time = answer.ms / (answer.width * answer.height);
    shown = { image, region, wanted, level, time };
    $("ms").textContent = `${answer.width} × ${answer.height} pixels in ${answer.ms.toFixed(0)} ms`;
    say("");
    draw();
  }
  next();
}

/** Draw the last frame where it belongs now. */
function draw() {
  context.fillStyle = "#111";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (!shown) return;
  const { image, region } = shown;
  const pitch = pitchOf(state.view, size());
  const place = (world, centre, side) => side / 2 + (world - centre) / pitch;
  const scale = region.pitch / pitch;
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  const left = place(region.left, state.view.x, canvas.width);
  const top = place(region.top, state.view.y, canvas.height);
  context.drawImage(image, left, top, image.width * scale, image.height * scale);
}

function change(part) {
  state = { ...state, ...part };
  state.view = constrain(state.view, maxZoom());
  moved = performance.now();
  history.replaceState(null, "", `#${write({ ...state, network: null, compare: null })}`);
  show();
  draw();
  next();
}

function show() {
  if (document.activeElement !== $("world")) $("world").value = state.world;
  $("world").setCustomValidity(parse($("world").value) ? "" : "A seed such as 3, or a mix such as 3~7:0.25");
  $("trunc").value = state.trunc;
  const mix = parse(state.world)?.mixes[0];
  $("mix").disabled = !mix;
  $("mix").value = mix ? mix.weight : 0;
  $("zoom").textContent = `${state.view.zoom.toFixed(state.view.zoom < 100 ? 2 : 0)}×`;
}

function fromAddress() {
  const { view, world, trunc } = read(location.hash);
  const given = new URLSearchParams(location.hash.slice(1));
  change({ view, world: given.has("w") && parse(world) ? world : "3", trunc: clamp(trunc, -2, 2) });
}

function resize() {
  canvas.width = Math.max(Math.round(canvas.clientWidth * devicePixelRatio), 1);
  canvas.height = Math.max(Math.round(canvas.clientHeight * devicePixelRatio), 1);
  change({});
}

function listen() {
  const at = (event) => [event.offsetX * devicePixelRatio, event.offsetY * devicePixelRatio];
  const zoomBy = (factor, px = canvas.width / 2, py = canvas.height / 2) =>
    change({ view: zoomAbout(state.view, size(), px, py, state.view.zoom * factor, maxZoom()) });
  addEventListener("resize", resize);
  addEventListener("hashchange", fromAddress);
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      zoomBy(2 ** (clamp(-event.deltaY, -400, 400) / 200), ...at(event));
    },
    { passive: false },
  );
  const pointers = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = at(event);
    if (pointers.size === 1) change({ view: panBy(state.view, size(), now[0] - before[0], now[1] - before[1], maxZoom()) });
    else {
      const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const distance = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]);
      zoomBy(distance(now) / Math.max(distance(before), 1), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    }
    pointers.set(event.pointerId, now);
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("dblclick", (event) => zoomBy(event.shiftKey ? 0.5 : 2, ...at(event)));
  $("world").addEventListener("input", () => parse($("world").value) ? change({ world: $("world").value.trim() }) : show());
  $("trunc").addEventListener("input", () => change({ trunc: Number($("trunc").value) }));
  $("random").addEventListener("click", () => change({ world: randomWorld() }));
  $("mixed").addEventListener("click", () => {
    const [base] = state.world.split(/[~_]/);
    change({ world: `${base}~${randomWorld()}:0.5` });
  });
  $("mix").addEventListener("input", () => change({ world: state.world.replace(/(~[^~_]+):[^~_:]+/, `$1:${Number($("mix").value)}`) }));
  $("whole").addEventListener("click", () => change({ view: { zoom: 1, x: 0, y: 0 } }));
  $("save").addEventListener("click", save);
  $("controls").addEventListener("submit", (event) => event.preventDefault()); // Return in the box
  addEventListener("keydown", (event) => {
    if (event.target instanceof HTMLInputElement || event.ctrlKey || event.metaKey || event.altKey) return;
    const pan = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key];
    if (pan) change({ view: panBy(state.view, size(), pan[0] * canvas.width, pan[1] * canvas.height, maxZoom()) });
    else if (event.key === "+" || event.key === "=") zoomBy(1.25);
    else if (event.key === "-") zoomBy(0.8);
    else if (event.key === "0") change({ view: { zoom: 1, x: 0, y: 0 } });
    else if (event.key === "r") change({ world: randomWorld() });
  });
}

/** The frame that is shown, with the model's own pixels, as a PNG. */
function save() {
  if (!shown) return;
  shown.image.convertToBlob({ type: "image/png" }).then((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${model.name}-${state.world.replaceAll(":", "=")}-${state.view.zoom.toFixed(2)}x.png`;
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
