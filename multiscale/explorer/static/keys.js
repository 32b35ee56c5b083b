/** The keyboard: what each key does, except in fields that take text and numbers. */

const ZOOM_OCTAVES = 0.5;
const MOVE_PART = 0.15; // of the canvas

/** Listen to the page; `app` has actions, zoom(octaves), glide(dx, dy), size, state, settle(patch), reveal(section). */
export function keys(app) {
  const glide = (x, y) => app.glide(x * app.size.width * MOVE_PART, y * app.size.height * MOVE_PART);
  const plain = {
    "+": () => app.zoom(ZOOM_OCTAVES),
    "=": () => app.zoom(ZOOM_OCTAVES),
    "-": () => app.zoom(-ZOOM_OCTAVES),
    ArrowLeft: () => glide(1, 0),
    ArrowRight: () => glide(-1, 0),
    ArrowUp: () => glide(0, 1),
    ArrowDown: () => glide(0, -1),
    0: app.actions.home,
    h: app.actions.help,
    "?": app.actions.help,
    r: app.actions.random,
    p: app.actions.previous,
    m: app.actions.side,
    c: app.actions.compare,
    e: () => app.settle({ error: !app.state.error }),
    s: () => app.reveal("save"),
    k: app.actions.keyframe,
    b: () => app.reveal("bookmark"),
  };
  addEventListener("keydown", (event) => {
    if (event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest("input:not([type=checkbox], [type=range]), select")) return;
    if (event.target.type === "range" && event.key.startsWith("Arrow")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const command = event.ctrlKey || event.metaKey;
    const undo = { z: event.shiftKey ? app.actions.redo : app.actions.undo, y: app.actions.redo };
    const act = command ? undo[key] : plain[key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}
