/**
 * The model, in a thread of its own: answers {id, world, trunc, region} with {id, width, height, pixels, ms}.
 *
 * `region`: {left, top, pitch, width, height}, pixels of side `pitch` in world units. Of several requests that wait only the newest
 * is answered.
 */
import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { loadModel } from "./model.js";
import { normals } from "./random.js";
import { along, drawPackets, framed } from "./waves.js";
import { parse } from "./worlds.js";

const STYLES_KEPT = 32;
const styles = new Map();
let model, mapping, synthesis, waves, frame;
let waiting = null;
let busy = false;

onmessage = ({ data }) => {
  if (waiting) postMessage({ id: waiting.id, dropped: true });
  waiting = data;
  if (!busy) work();
};

const ready = load().then(
  () => postMessage({ ready: true, threads: ort.env.wasm.numThreads }),
  (error) => postMessage({ failed: String(error?.message ?? error) }),
);

async function load() {
  ort.env.wasm.wasmPaths = { wasm: new URL("./runtime/ort-wasm-simd-threaded.wasm", import.meta.url).href };
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 8) : 1;
  const loaded = await loadModel();
  ({ facts: model, waves, frame } = loaded);
  const { bandwidth, terms } = model.packets;
  if (bandwidth > 0) for (const point of model.points) point.packets = drawPackets(point.waves, point.rate, terms);
  const externalData = [{ path: "weights", data: new Uint8Array(loaded.weights.buffer) }];
  const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all", externalData };
  mapping = await ort.InferenceSession.create(loaded.mapping, options);
  synthesis = await ort.InferenceSession.create(loaded.synthesis, options);
}

async function work() {
  busy = true;
  await ready;
  if (!synthesis) return;
  while (waiting) {
    const request = waiting;
    waiting = null;
    try {
      const start = performance.now();
      const pixels = await render(request);
      const { width, height } = request.region;
      const ms = performance.now() - start;
      postMessage({ id: request.id, width, height, pixels, ms }, [pixels.buffer]);
    } catch (error) {
      postMessage({ id: request.id, error: String(error?.message ?? error) });
    }
    await new Promise((resume) => setTimeout(resume)); // let newer requests in
  }
  busy = false;
}

/** Pixels of a region as RGBA. */
async function render({ world, trunc, region }) {
  const { resolution, step, halo } = model;
  const ws = await stylesOf(world, trunc);
  const [wide, high] = [region.width, region.height].map((side) => Math.ceil(side / step) * step + 2 * halo);
  const view = framed(frame, ws.data.subarray(0, model.w_dim), {
    scale: region.pitch * resolution,
    x: region.left + region.pitch * (wide / 2 - halo),
    y: region.top + region.pitch * (high / 2 - halo),
  });
  const { terms } = model.packets;
  const feeds = { ws };
  let first = 0;
  model.points.forEach((point, i) => {
    const samples = (side) => point.size + Math.floor(((side - resolution) * point.rate) / resolution);
    const size = { columns: samples(wide), rows: samples(high) };
    const [x, y] = along(model, point, waves.subarray(4 * first, 4 * (first + point.waves)), view, size);
    feeds[`along_x${i}`] = new ort.Tensor("float32", x, [2, point.waves * terms, size.columns]);
    feeds[`along_y${i}`] = new ort.Tensor("float32", y, [2, point.waves * terms, size.rows]);
    first += point.waves;
  });
  const { image } = await synthesis.run(feeds);
  const { data, dims } = image;
  const pixels = new Uint8ClampedArray(4 * region.width * region.height);
  for (let row = 0, to = 0; row < region.height; row++) {
    for (let column = 0; column < region.width; column++, to += 4) {
      const from = (row + halo) * dims[3] + column + halo;
      for (let c = 0; c < 3; c++) {
        pixels[to + c] = Math.floor(data[(dims[1] === 1 ? 0 : c) * dims[2] * dims[3] + from] * 127.5 + 128);
      }
      pixels[to + 3] = 255;
    }
  }
  image.dispose();
  return pixels;
}

/** Styles [1, num_ws, D] of a world in writing; the last few are kept. */
async function stylesOf(world, trunc) {
  const key = `${world} ${trunc}`;
  if (!styles.has(key)) {
    const parts = parse(world);
    if (!parts) throw new Error(`World ${world} cannot be read.`);
    const ws = new Float32Array(await mapped(parts, trunc));
    for (const { term, weight } of parts.mixes) {
      const other = await mapped(parse(term), trunc);
      for (let i = 0; i < ws.length; i++) ws[i] += weight * (other[i] - ws[i]);
    }
    for (const { term, first, last } of parts.styles) {
      if (last >= model.layers) throw new Error(`World ${world} names layer ${last}; there are 0 to ${model.layers - 1}.`);
      const other = await mapped(parse(term), trunc);
      const [from, to] = [(first + 1) * model.w_dim, (last + 2) * model.w_dim];
      ws.set(other.subarray(from, to), from);
    }
    styles.set(key, ws);
    if (styles.size > STYLES_KEPT) styles.delete(styles.keys().next().value);
  }
  return new ort.Tensor("float32", styles.get(key), [1, model.layers + 1, model.w_dim]);
}

/** Styles of one latent. */
async function mapped({ seed, drift: [dx, dy] }, trunc) {
  const z = normals(seed, "z", model.z_dim);
  if (dx || dy) {
    const directions = normals(seed, "drift", 2 * model.z_dim);
    for (let i = 0; i < z.length; i++) z[i] += dx * directions[i] + dy * directions[i + model.z_dim];
  }
  const feeds = {
    z: new ort.Tensor("float32", z, [1, model.z_dim]),
    psi: new ort.Tensor("float32", Float32Array.of(trunc), [1]),
  };
  return (await mapping.run(feeds)).ws.data;
}
