/** Mouse, pen and touch on a canvas: wheel and pinch zoom, drag with momentum, double tap, right-button drift. */

const TAP_PX = 6;
const TAP_MS = 350;
const RECENT_MS = 100;
const PIXELS_AN_OCTAVE = 240; // of the wheel
const LINE_PX = 40;

/**
 * Listen on `canvas`; the actions get canvas coordinates in CSS pixels:
 * touch() at the start of anything; zoom(px, py, octaves); pan(dx, dy); grab(px, py) when two fingers are down, then
 * pinch(px, py, factor) with the new place and the magnification of what was grabbed; fling(vx, vy) in pixels per
 * millisecond; drift(dx, dy) with the total movement since the right button went down; drifted() at its end.
 */
export function listen(canvas, actions) {
  const pointers = new Map();
  let trail = [];
  let drifting = null;
  let moved = 0;
  let lastTap = null;
  let grabbed = null;

  const place = (event) => {
    const bounds = canvas.getBoundingClientRect();
    return { x: event.clientX - bounds.left, y: event.clientY - bounds.top };
  };
  const middle = () => {
    const points = [...pointers.values()];
    const mean = (of) => points.reduce((sum, point) => sum + of(point), 0) / points.length;
    const [x, y] = [mean((p) => p.x), mean((p) => p.y)];
    return { x, y, spread: mean((p) => Math.hypot(p.x - x, p.y - y)) };
  };

  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const unit = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? LINE_PX : 1;
    const { x, y } = place(event);
    const octaves = (-event.deltaY * unit * (event.ctrlKey ? 4 : 1)) / PIXELS_AN_OCTAVE; // ctrl: a touchpad's pinch
    actions.zoom(x, y, Math.max(Math.min(octaves, 2), -2));
  }, { passive: false });

  canvas.addEventListener("contextmenu", (event) => event.preventDefault());

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 && event.button !== 2) return;
    actions.touch();
    canvas.setPointerCapture(event.pointerId);
    if (!pointers.size) [moved, drifting] = [0, event.button === 2 ? place(event) : null];
    pointers.set(event.pointerId, place(event));
    trail = [];
    grab();
  });

  canvas.addEventListener("pointermove", (event) => {
    if (!pointers.has(event.pointerId)) return;
    const before = middle();
    pointers.set(event.pointerId, place(event));
    const after = middle();
    const [dx, dy] = [after.x - before.x, after.y - before.y];
    moved += Math.hypot(dx, dy) + Math.abs(after.spread - before.spread);
    if (drifting) {
      actions.drift(after.x - drifting.x, after.y - drifting.y);
      return;
    }
    if (grabbed) actions.pinch(after.x, after.y, after.spread / grabbed.spread);
    else if (dx || dy) actions.pan(dx, dy);
    trail.push({ ...after, time: event.timeStamp });
  });

  const release = (event) => {
    if (!pointers.delete(event.pointerId)) return;
    grab();
    if (pointers.size) {
      trail = [];
      return;
    }
    if (drifting) actions.drifted();
    else if (moved > TAP_PX) fling(event.timeStamp);
    else if (event.type === "pointerup") tap(event);
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);

  function grab() {
    grabbed = pointers.size > 1 ? middle() : null;
    if (grabbed) {
      grabbed.spread = Math.max(grabbed.spread, 1);
      actions.grab(grabbed.x, grabbed.y);
    }
  }

  function fling(time) {
    const recent = trail.filter((point) => time - point.time < RECENT_MS);
    if (recent.length < 2) return;
    const [first, last] = [recent[0], recent.at(-1)];
    const ms = Math.max(time - first.time, 8);
    actions.fling((last.x - first.x) / ms, (last.y - first.y) / ms);
  }

  function tap(event) {
    const { x, y } = place(event);
    const again = lastTap && event.timeStamp - lastTap.time < TAP_MS && Math.hypot(x - lastTap.x, y - lastTap.y) < 30;
    lastTap = again ? null : { x, y, time: event.timeStamp };
    if (again) actions.zoom(x, y, event.shiftKey ? -1 : 1);
  }
}
