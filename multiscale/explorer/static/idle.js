/** For exhibits: a page with `?home=120` in its address returns to its first view after 120 seconds without a touch. */

const POINTERS = ["pointerdown", "pointermove", "pointerup", "pointercancel"];
const SIGNS = [...POINTERS, "touchmove", "wheel", "keydown", "input", "click"];
const LOOK_MS = 200;

/** Call `home` after the seconds without a touch that the address names, if it does; not in a drag, nor while `busy()`. */
export function returning(home, busy = () => false) {
  const ms = 1000 * new URLSearchParams(location.search).get("home");
  if (!(ms > 0 && ms < Infinity)) return;
  const held = new Set(); // pointers that are down
  let touched = Infinity; // when last; not since the page came or returned
  for (const sign of SIGNS) {
    const note = (event) => {
      touched = performance.now();
      if (POINTERS.includes(sign)) held[event.buttons ? "add" : "delete"](event.pointerId);
    };
    addEventListener(sign, note, { capture: true, passive: true });
  }
  setInterval(() => {
    if (touched === Infinity) return;
    const now = performance.now();
    if (held.size || busy()) touched = now;
    else if (now - touched >= ms) {
      touched = Infinity;
      home();
    }
  }, LOOK_MS);
}
