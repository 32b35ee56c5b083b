/** Animations of the view: smooth zooming, gliding, momentum, flights; one at a time, and any touch ends it. */
import { between, clamp, panBy, zoomAbout } from "./view.js";

const ZOOM_MS = 55;
const GLIDE_MS = 70;
const FLING_MS = 300;
const FLIGHT_MS = 500;
const REST = 0.01; // pixels per millisecond

export class Motion {
  #run = null;
  #time = 0;

  /** `stage`: view, size, maxZoom (to read) and move(view). */
  constructor(stage) {
    this.stage = stage;
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
  }

  get active() {
    return this.#run !== null;
  }

  stop() {
    this.#run = null;
  }

  /** Zoom by `octaves` more about the canvas's point (px, py). */
  zoom(px, py, octaves) {
    const from = this.#run?.octave ?? Math.log2(this.stage.view.zoom);
    const octave = clamp(from + octaves, 0, Math.log2(this.stage.maxZoom));
    this.#start({
      octave,
      step: (dt) => {
        const now = Math.log2(this.stage.view.zoom);
        const left = (octave - now) * this.#left(dt, ZOOM_MS);
        const done = Math.abs(left) < 0.001;
        const zoom = 2 ** (done ? octave : octave - left);
        this.stage.move(zoomAbout(this.stage.view, this.stage.size, px, py, zoom, this.stage.maxZoom));
        return done;
      },
    });
  }

  /** Move the picture by (dx, dy) pixels more. */
  glide(dx, dy) {
    const rest = { x: (this.#run?.rest?.x ?? 0) + dx, y: (this.#run?.rest?.y ?? 0) + dy };
    this.#start({
      rest,
      step: (dt) => {
        const part = Math.hypot(rest.x, rest.y) < 0.5 ? 1 : 1 - this.#left(dt, GLIDE_MS);
        this.#pan(rest.x * part, rest.y * part);
        rest.x -= rest.x * part;
        rest.y -= rest.y * part;
        return part === 1;
      },
    });
  }

  /** Keep moving at (vx, vy) pixels per millisecond, slowing down to rest. */
  fling(vx, vy) {
    if (this.calm.matches || Math.hypot(vx, vy) < 10 * REST) return;
    let speed = 1;
    this.#start({
      step: (dt) => {
        const left = this.#left(dt, FLING_MS);
        this.#pan(vx * speed * FLING_MS * (1 - left), vy * speed * FLING_MS * (1 - left));
        speed *= left;
        return Math.hypot(vx, vy) * speed < REST;
      },
    });
  }

  /** Fly to a view. */
  fly(to) {
    const octaves = Math.abs(Math.log2(to.zoom / this.stage.view.zoom));
    this.play([this.stage.view, to], this.calm.matches ? 0 : FLIGHT_MS * (1 + octaves / 4), ease);
  }

  /** Fly through views in `ms`, the time between two of them in proportion to their distance. */
  play(views, ms, timing = (t) => t) {
    const lengths = views.slice(1).map((view, i) => distance(views[i], view));
    const total = lengths.reduce((sum, length) => sum + length, 0) || 1;
    let time = 0;
    this.#start({
      step: (dt) => {
        time += dt;
        if (time >= ms) {
          this.stage.move(views.at(-1));
          return true;
        }
        let along = timing(time / ms) * total;
        let i = 0;
        while (i < lengths.length - 1 && along > lengths[i]) along -= lengths[i++];
        this.stage.move(between(views[i], views[i + 1], clamp(along / (lengths[i] || 1), 0, 1)));
        return false;
      },
    });
  }

  /** Advance to `now` (ms). */
  step(now) {
    if (!this.#run) return;
    const dt = Math.min(now - this.#time, 100);
    this.#time = now;
    const run = this.#run;
    if (run.step(Math.max(dt, 0)) && this.#run === run) this.#run = null;
  }

  #start(run) {
    if (!this.#run) this.#time = performance.now();
    this.#run = run;
  }

  #left(dt, constant) {
    return this.calm.matches ? 0 : Math.exp(-dt / constant);
  }

  #pan(dx, dy) {
    this.stage.move(panBy(this.stage.view, this.stage.size, dx, dy, this.stage.maxZoom));
  }
}

/** Distance of two views: in octaves or in widths of the view, whichever is more. */
function distance(a, b) {
  const octaves = Math.abs(Math.log2(b.zoom / a.zoom));
  return Math.max(octaves, Math.hypot(b.x - a.x, b.y - a.y) * Math.min(a.zoom, b.zoom), 0.01);
}

const ease = (t) => t * t * (3 - 2 * t);
