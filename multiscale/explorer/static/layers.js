/**
 * The pictures that one canvas has received, each at its place in the world, painted over each other: the best on top.
 *
 * A layer: {rect, pitch, bitmap, content, sharp, backdrop, born}; `content` counts the worlds shown, newest largest.
 */
import { contains, intersect, subtract } from "./view.js";

const FADE_MS = 140;
const OUTSIDE = "#0a0c0f";
const EMPTY = "#16191e";

export class Layers {
  #layers = [];

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
   * width, height: of the canvas in device pixels}. Returns whether a layer is still fading in.
   */
  paint(context, camera, now, fade) {
    const seen = this.#layers.filter((layer) => intersect(layer.rect, camera.rect));
    seen.sort((a, b) => rank(a, camera) - rank(b, camera));
    const opacity = (layer) => (fade && layer.sharp ? Math.min((now - layer.born) / FADE_MS, 1) : 1);
    const lowest = seen.findLastIndex((layer) => opacity(layer) === 1 && contains(layer.rect, camera.shown));
    context.globalAlpha = 1;
    context.fillStyle = OUTSIDE;
    context.fillRect(0, 0, camera.width, camera.height);
    if (!seen.length) {
      const { rect, shown, pitch } = camera;
      const at = [(shown.left - rect.left) / pitch, (shown.top - rect.top) / pitch];
      context.fillStyle = EMPTY;
      context.fillRect(...at, (shown.right - shown.left) / pitch, (shown.bottom - shown.top) / pitch);
    }
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    let fading = false;
    for (const layer of seen.slice(Math.max(lowest, 0))) {
      context.globalAlpha = opacity(layer);
      fading ||= context.globalAlpha < 1;
      context.drawImage(layer.bitmap, ...box(layer, camera));
    }
    context.globalAlpha = 1;
    return fading;
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

/** Where a picture {rect, pitch, bitmap} goes: x, y, width, height in device pixels, whole ones if it has their pitch. */
export function box({ rect, pitch, bitmap }, camera) {
  const [x, y] = [(rect.left - camera.rect.left) / camera.pitch, (rect.top - camera.rect.top) / camera.pitch];
  const scale = pitch / camera.pitch;
  if (Math.abs(scale - 1) < 1e-6) return [Math.round(x), Math.round(y), bitmap.width, bitmap.height];
  return [x, y, bitmap.width * scale, bitmap.height * scale];
}

/** Order of painting: older worlds first, then backdrops, then by how far the pixels are from the canvas's own. */
function rank(layer, camera) {
  const octaves = Math.log2(layer.pitch / camera.pitch);
  const distance = octaves > 0 ? octaves : -2 * octaves;
  return layer.content * 1000 - (layer.backdrop ? 100 : Math.min(distance, 50)) + (layer.sharp ? 0.01 : 0);
}
