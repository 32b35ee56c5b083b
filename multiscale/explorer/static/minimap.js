/** A small map of the whole world, with the visible part outlined; clicking or dragging on it moves the view. */
import { clamp, extent } from "./view.js";

export class Minimap {
  /** `move({x, y})` is called with world coordinates. */
  constructor(canvas, move) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    const follow = (event) => {
      const bounds = canvas.getBoundingClientRect();
      const along = (at, low, length) => clamp((at - low) / length, 0, 1) - 0.5;
      move({ x: along(event.clientX, bounds.left, bounds.width), y: along(event.clientY, bounds.top, bounds.height) });
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      follow(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (canvas.hasPointerCapture(event.pointerId)) follow(event);
    });
  }

  /** Paint `bitmap` (or nothing yet) and the part of the world that a canvas of `size` shows. */
  paint(bitmap, view, size, ratio) {
    const side = Math.round(this.canvas.clientWidth * ratio);
    if (!side) return;
    if (this.canvas.width !== side) this.canvas.width = this.canvas.height = side;
    const { context } = this;
    context.fillStyle = "#16191e";
    context.fillRect(0, 0, side, side);
    context.imageSmoothingQuality = "high";
    if (bitmap) context.drawImage(bitmap, 0, 0, side, side);
    const shown = extent(view, size);
    const at = (value) => clamp((value + 0.5) * side, 0, side);
    const [left, top, right, bottom] = [at(shown.left), at(shown.top), at(shown.right), at(shown.bottom)];
    const [x, y] = [at(view.x), at(view.y)];
    const [w, h] = [Math.max(right - left, 5 * ratio), Math.max(bottom - top, 5 * ratio)];
    const box = [clamp(x - w / 2, 0, side - w), clamp(y - h / 2, 0, side - h), w, h];
    if (right - left > 5 * ratio) box[0] = left;
    if (bottom - top > 5 * ratio) box[1] = top;
    for (const [width, colour] of [
      [3.5, "#000a"],
      [1.5, "#ffd75e"],
    ]) {
      context.lineWidth = width * ratio;
      context.strokeStyle = colour;
      context.strokeRect(...box);
    }
  }
}
