/**
 * The pictures that one canvas has received, each at its place in the world, painted over each other: the best on top.
 *
 * A layer: {rect, pitch, bitmap, content, sharp, backdrop, born, fades}; `content` counts the worlds shown, newest largest. Those of
 * one content and pitch belong together: they are enlarged as one picture, and where that ends within the view it blends into what is
 * below, so that a picture that arrives in parts gets into focus from its middle, and shows no squares and no seams.
 */
import { box, contains, hull, inflate, intersect, SAME, subtract, WORLD } from "./view.js";

const FADE_MS = 200;
const FEATHER_PX = 32; // device pixels in which parts end
const SUPPORT_PX = 4; // pixels of a picture, around one, by which that may change when it is enlarged: 2, and some more
const OUTSIDE = "#0a0c0f";
const EMPTY = "#16191e";

export class Layers {
  #layers = [];
  #part = document.createElement("canvas").getContext("2d"); // of the view, while it is put together
  #mask = document.createElement("canvas").getContext("2d"); // of that, a pixel for each FEATHER_PX
  #joined = document.createElement("canvas").getContext("2d"); // layers that belong together, in their own pixels

  /** Add a layer, and drop those it makes useless. `camera` as for `paint`. */
  add(layer, camera) {
    this.#layers.push(layer);
    if (layer.backdrop) this.#drop((other) => other.backdrop && other.content < layer.content);
    if (contains(layer.rect, camera.shown)) this.#drop((other) => other.content < layer.content && !other.backdrop);
    this.#bound(camera);
  }

  /** The backdrop of the newest content, if any. */
  get backdrop() {
    return this.#layers.filter((layer) => layer.backdrop).at(-1) ?? null;
  }

  /** The parts of `rect` that no layer covers for which `fits` holds: a list of rects. */
  missing(rect, fits) {
    return subtract(
      rect,
      this.#layers.filter(fits).map((layer) => layer.rect),
    );
  }

  /**
   * Paint everything in view.
   *
   * camera: {rect: what the canvas shows, shown: the same clipped to the world, pitch: world units per device pixel,
   * width, height: of the canvas in device pixels}. While the view moves pictures end in hard edges, which costs less; `calm`: they
   * appear at once. Returns whether a layer is still fading in.
   */
  paint(context, camera, now, { moving, calm }) {
    const seen = this.#layers.filter((layer) => intersect(layer.rect, camera.rect));
    seen.sort((a, b) => rank(a, camera) - rank(b, camera));
    const opacity = (layer) => (layer.fades && !moving && !calm ? Math.min((now - layer.born) / FADE_MS, 1) : 1);
    const groups = grouped(seen).map((layers) => {
      const whole = layers.filter((layer) => opacity(layer) === 1);
      return { layers, holes: holes(camera, layers), unsure: holes(camera, whole), opacity: Math.min(...layers.map(opacity)) };
    });
    const lowest = groups.findLastIndex((group) => !group.unsure.length);
    context.globalAlpha = 1;
    context.fillStyle = OUTSIDE;
    context.fillRect(0, 0, camera.width, camera.height);
    if (!seen.length) {
      const { rect, shown, pitch } = camera;
      const at = [(shown.left - rect.left) / pitch, (shown.top - rect.top) / pitch];
      context.fillStyle = EMPTY;
      context.fillRect(...at, (shown.right - shown.left) / pitch, (shown.bottom - shown.top) / pitch);
    }
    smooth(context);
    for (const group of groups.slice(Math.max(lowest, 0))) {
      if (group.unsure.length && !moving) this.#paintPart(context, camera, group);
      else for (const picture of this.#pictures(group.layers, camera)) draw(context, picture, camera);
    }
    return seen.some((layer) => opacity(layer) < 1);
  }

  /** Paint layers that do not cover the view, or do not yet: clear at `holes`, at `unsure` up to `opacity`. */
  #paintPart(context, camera, { layers, holes, unsure, opacity }) {
    const inView = intersect(hull(layers.map((layer) => layer.rect)), camera.rect);
    const at = (world, start) => (world - start) / camera.pitch;
    const [left, top] = [at(inView.left, camera.rect.left), at(inView.top, camera.rect.top)].map(Math.floor);
    const width = Math.ceil(at(inView.right, camera.rect.left)) - left;
    const height = Math.ceil(at(inView.bottom, camera.rect.top)) - top;
    const [columns, rows] = [width, height].map((side) => Math.ceil(side / FEATHER_PX));

    const mask = emptied(this.#mask, columns, rows);
    mask.fillRect(0, 0, columns, rows);
    mask.globalCompositeOperation = "destination-out";
    mask.scale(1 / FEATHER_PX, 1 / FEATHER_PX);
    mask.translate(-left, -top);
    for (const [rects, alpha] of [[holes, 1], [unsure, 1 - opacity]]) {
      mask.globalAlpha = alpha;
      mask.beginPath();
      for (const hole of rects) {
        const { left, top, right, bottom } = inflate(hole, FEATHER_PX * camera.pitch);
        const [x, y] = [at(left, camera.rect.left), at(top, camera.rect.top)];
        mask.rect(x, y, (right - left) / camera.pitch, (bottom - top) / camera.pitch);
      }
      mask.fill();
    }

    const part = emptied(this.#part, width, height);
    smooth(part);
    for (const picture of this.#pictures(layers, camera)) draw(part, picture, camera, left, top);
    part.globalCompositeOperation = "destination-in";
    part.imageSmoothingQuality = "low"; // linear
    part.drawImage(mask.canvas, 0, 0, columns, rows, 0, 0, columns * FEATHER_PX, rows * FEATHER_PX);
    context.drawImage(part.canvas, 0, 0, width, height, left, top, width, height);
  }

  /**
   * Layers that belong together as pictures to draw. Where they are enlarged that is one, for at the edge of a picture the browser has
   * no neighbours to interpolate with: each by itself would end in a crease.
   */
  #pictures(layers, camera) {
    const [{ pitch }] = layers;
    if (layers.length === 1 || pitch < camera.pitch * (1 + SAME)) return layers;
    const index = (world) => (world - WORLD.left) / pitch; // the world is as wide as high
    const parts = layers.map(({ rect, bitmap }) => {
      const [x, y] = [rect.left, rect.top].map((start) => Math.round(index(start)));
      return { bitmap, left: x, top: y, right: x + bitmap.width, bottom: y + bitmap.height };
    });
    const seen = Object.entries(camera.rect).map(([side, world]) => [side, Math.round(index(world))]);
    const { left, top, right, bottom } = intersect(hull(parts), inflate(Object.fromEntries(seen), SUPPORT_PX));
    const [width, height] = [right - left, bottom - top];
    const joined = emptied(this.#joined, width, height);
    for (const part of parts) joined.drawImage(part.bitmap, part.left - left, part.top - top);
    const rect = { left: WORLD.left + left * pitch, top: WORLD.top + top * pitch };
    return [{ rect, pitch, width, height, bitmap: joined.canvas }];
  }

  clear() {
    this.#drop(() => true);
  }

  #drop(useless) {
    for (const layer of this.#layers) if (useless(layer)) layer.bitmap.close();
    this.#layers = this.#layers.filter((layer) => !useless(layer));
  }

  /** Keep a few canvases' worth of pixels: those that matter most for the current view. */
  #bound(camera) {
    const most = 4 * camera.width * camera.height + 2e6;
    const seen = (layer) => (intersect(layer.rect, camera.rect) ? 1e6 : 0);
    const value = (layer) => (layer.backdrop ? 1e9 : rank(layer, camera) + seen(layer));
    const kept = new Set();
    let pixels = 0;
    for (const layer of [...this.#layers].sort((a, b) => value(b) - value(a))) {
      pixels += layer.bitmap.width * layer.bitmap.height;
      if (pixels <= most || kept.size < 4) kept.add(layer);
    }
    this.#drop((layer) => !kept.has(layer));
  }
}

/** Neighbours in a sorted list of layers that belong together. */
function grouped(layers) {
  const groups = [];
  for (const layer of layers) {
    const last = groups.at(-1)?.[0];
    const same = ["content", "backdrop", "sharp"].every((key) => last?.[key] === layer[key]);
    if (same && Math.abs(last.pitch / layer.pitch - 1) < SAME) groups.at(-1).push(layer);
    else groups.push([layer]);
  }
  return groups;
}

/** The parts of the view that layers leave free. */
function holes({ shown, pitch }, layers) {
  return subtract(
    shown,
    layers.map((layer) => inflate(layer.rect, pitch / 100)),
  );
}

function smooth(context) {
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
}

/** A context as new, of a canvas that has room for width x height pixels. */
function emptied(context, width, height) {
  const { canvas } = context;
  if (canvas.width < width || canvas.height < height) {
    canvas.width = Math.max(canvas.width, width);
    canvas.height = Math.max(canvas.height, height);
  }
  context.reset();
  return context;
}

/** Draw a picture, as `box` takes it, where it belongs in a canvas whose corner lies at the camera's device pixel (left, top). */
function draw(context, picture, camera, left = 0, top = 0) {
  const { bitmap, width = bitmap.width, height = bitmap.height } = picture;
  const [x, y, ...size] = box(picture, camera);
  context.drawImage(bitmap, 0, 0, width, height, x - left, y - top, ...size);
}

/** Order of painting: older worlds first, then backdrops, then by how far the pixels are from the canvas's own. */
function rank(layer, camera) {
  const octaves = Math.log2(layer.pitch / camera.pitch);
  const distance = octaves > 0 ? octaves : -2 * octaves;
  return layer.content * 1000 - (layer.backdrop ? 100 : Math.min(distance, 50)) + (layer.sharp ? 0.01 : 0);
}
