/**
 * Views of the world: pure coordinate maths, nothing of the page.
 *
 * World: the square [-1/2, 1/2]^2, x to the right, y down. A view {zoom, x, y} on a canvas of size {width, height}
 * shows 1/zoom of the world along the canvas's shorter side, about its centre (x, y); zoom 1 is the whole world. That
 * inner square never leaves the world, so that zooming in about any point of the world keeps the point where it is.
 * Rect: {left, top, right, bottom} in world units. Region: {left, top, pitch, width, height}, pixels of side `pitch`.
 */

export const WORLD = { left: -0.5, top: -0.5, right: 0.5, bottom: 0.5 };
/** Pitches that differ by less, relatively, are one. */
export const SAME = 1e-9;
const TOLERANCE = 1e-6; // pixels

export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** World units per pixel of the canvas. */
export const pitchOf = (view, size) => 1 / (view.zoom * Math.min(size.width, size.height));

/** The nearest legal view. */
export function constrain({ zoom, x, y }, maxZoom) {
  const legal = clamp(zoom, 1, maxZoom);
  const reach = (1 - 1 / legal) / 2;
  return { zoom: legal, x: clamp(x, -reach, reach), y: clamp(y, -reach, reach) };
}

/** World coordinates of the canvas's point (px, py). */
export function worldAt(view, size, px, py) {
  const pitch = pitchOf(view, size);
  return { x: view.x + (px - size.width / 2) * pitch, y: view.y + (py - size.height / 2) * pitch };
}

/** The canvas's point that shows the world's (x, y). */
export function screenAt(view, size, x, y) {
  const pitch = pitchOf(view, size);
  return { px: size.width / 2 + (x - view.x) / pitch, py: size.height / 2 + (y - view.y) / pitch };
}

/** The view at a zoom that shows the world's `point` at (px, py), or the nearest legal one. */
export function holding(point, size, px, py, zoom, maxZoom) {
  const legal = clamp(zoom, 1, maxZoom);
  const pitch = pitchOf({ zoom: legal }, size);
  const [x, y] = [point.x - (px - size.width / 2) * pitch, point.y - (py - size.height / 2) * pitch];
  return constrain({ zoom: legal, x, y }, maxZoom);
}

/** The view at another zoom that keeps the point under (px, py), or the world's nearest to it, in place. */
export function zoomAbout(view, size, px, py, zoom, maxZoom) {
  const under = worldAt(view, size, px, py);
  const point = { x: clamp(under.x, -0.5, 0.5), y: clamp(under.y, -0.5, 0.5) };
  const place = screenAt(view, size, point.x, point.y);
  return holding(point, size, place.px, place.py, zoom, maxZoom);
}

/** The view after moving its picture by (dx, dy) pixels. */
export function panBy(view, size, dx, dy, maxZoom) {
  const pitch = pitchOf(view, size);
  return constrain({ zoom: view.zoom, x: view.x - dx * pitch, y: view.y - dy * pitch }, maxZoom);
}

/** The view at fraction t (0 to 1) of the way from one view to another, at constant speed in octaves. */
export function between(from, to, t) {
  const zoom = from.zoom * (to.zoom / from.zoom) ** t;
  const same = Math.abs(Math.log2(to.zoom / from.zoom)) < 1e-6;
  const moved = same ? t : (1 / from.zoom - 1 / zoom) / (1 / from.zoom - 1 / to.zoom);
  return { zoom, x: from.x + (to.x - from.x) * moved, y: from.y + (to.y - from.y) * moved };
}

/** The rect that the canvas shows, which may reach beyond the world. */
export function extent(view, size) {
  const pitch = pitchOf(view, size);
  const [w, h] = [(size.width * pitch) / 2, (size.height * pitch) / 2];
  return { left: view.x - w, top: view.y - h, right: view.x + w, bottom: view.y + h };
}

export function intersect(a, b) {
  const rect = {
    left: Math.max(a.left, b.left),
    top: Math.max(a.top, b.top),
    right: Math.min(a.right, b.right),
    bottom: Math.min(a.bottom, b.bottom),
  };
  return rect.left < rect.right && rect.top < rect.bottom ? rect : null;
}

export const contains = (outer, inner) =>
  outer.left <= inner.left && outer.top <= inner.top && outer.right >= inner.right && outer.bottom >= inner.bottom;

export const area = (rect) => (rect.right - rect.left) * (rect.bottom - rect.top);

export const inflate = (rect, by) => ({
  left: rect.left - by,
  top: rect.top - by,
  right: rect.right + by,
  bottom: rect.bottom + by,
});

/** The smallest rect about all of `rects` (at least one). */
export const hull = (rects) => ({
  left: Math.min(...rects.map((r) => r.left)),
  top: Math.min(...rects.map((r) => r.top)),
  right: Math.max(...rects.map((r) => r.right)),
  bottom: Math.max(...rects.map((r) => r.bottom)),
});

/** `rect` without `covers`, as rects that do not overlap. */
export function subtract(rect, covers) {
  let rest = [rect];
  for (const cover of covers) {
    rest = rest.flatMap((r) => {
      const cut = intersect(r, cover);
      if (!cut) return [r];
      return [
        { ...r, bottom: cut.top },
        { ...r, top: cut.bottom },
        { left: r.left, right: cut.left, top: cut.top, bottom: cut.bottom },
        { left: cut.right, right: r.right, top: cut.top, bottom: cut.bottom },
      ].filter((part) => part.left < part.right && part.top < part.bottom);
    });
    if (!rest.length) break;
  }
  return rest;
}

/**
 * The region of pixels of side `pitch` that covers `rect`, clipped to the world, its edges on the lattice of `step`
 * pixels that starts at the world's corner: all regions of one pitch share the network's grid of samples. At the world's
 * right and lower edges less than a pixel may be missing. Where the world has room it is a multiple of `grain` steps
 * wide and high, so that a moving view asks for few different shapes.
 */
export function regionOver(rect, pitch, step, grain = 1) {
  const cell = pitch * step;
  const most = Math.floor(1 / pitch + TOLERANCE);
  const along = (low, high) => {
    const end = Math.ceil(most / step);
    const first = clamp(Math.floor((low + 0.5) / cell + TOLERANCE), 0, end - 1);
    const last = clamp(Math.ceil((high + 0.5) / cell - TOLERANCE), first + 1, end);
    const count = Math.min(Math.ceil((last - first) / grain) * grain, end);
    const start = Math.min(first, end - count) * step;
    return { start, count: Math.min(count * step, most - start) };
  };
  const [columns, rows] = [along(rect.left, rect.right), along(rect.top, rect.bottom)];
  return {
    left: -0.5 + columns.start * pitch,
    top: -0.5 + rows.start * pitch,
    pitch,
    width: columns.count,
    height: rows.count,
  };
}

/** The rect of a region; one that ends less than a pixel before the world's edge counts as reaching it. */
export function rectOf({ left, top, pitch, width, height }) {
  const reach = (end) => (end > 0.5 - pitch ? 0.5 : end);
  return { left, top, right: reach(left + width * pitch), bottom: reach(top + height * pitch) };
}

/**
 * Where a picture {rect, pitch, bitmap, width and height: of the bitmap unless given} goes on the canvas of a camera {rect, pitch}: x, y,
 * width, height in device pixels, whole ones if it has their pitch.
 */
export function box({ rect, pitch, bitmap, width = bitmap.width, height = bitmap.height }, camera) {
  const [x, y] = [(rect.left - camera.rect.left) / camera.pitch, (rect.top - camera.rect.top) / camera.pitch];
  const scale = pitch / camera.pitch;
  const whole = (at) => Math.floor(at + 0.5 + TOLERANCE); // halves, which odd canvases have, all to the same side
  if (Math.abs(scale - 1) < SAME) return [whole(x), whole(y), width, height];
  return [x, y, width * scale, height * scale];
}

/** Equal parts of `rect`, none with more than `most` pixels of side `pitch`. */
export function cells(rect, pitch, most) {
  const [w, h] = [rect.right - rect.left, rect.bottom - rect.top];
  const side = Math.sqrt(most) * pitch;
  const [columns, rows] = w * h <= most * pitch * pitch ? [1, 1] : [Math.ceil(w / side), Math.ceil(h / side)];
  const parts = [];
  for (let j = 0; j < rows; j++) {
    for (let i = 0; i < columns; i++) {
      parts.push({
        left: rect.left + (w * i) / columns,
        top: rect.top + (h * j) / rows,
        right: rect.left + (w * (i + 1)) / columns,
        bottom: rect.top + (h * (j + 1)) / rows,
      });
    }
  }
  return parts;
}

/** The largest rect of aspect `width`:`height` about the middle of what a view shows of the world. */
export function framed(view, size, width, height) {
  const shown = intersect(extent(view, size), WORLD);
  const pitch = Math.min((shown.right - shown.left) / width, (shown.bottom - shown.top) / height);
  const [x, y] = [(shown.left + shown.right) / 2, (shown.top + shown.bottom) / 2];
  const [w, h] = [(width * pitch) / 2, (height * pitch) / 2];
  return { left: x - w, top: y - h, right: x + w, bottom: y + h };
}
