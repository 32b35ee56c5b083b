/**
 * One canvas of the world: paints what it has at once, and asks the server for what would improve it.
 *
 * While the view moves it asks for drafts, as many pixels as the server can render in a blink; when it rests, for finer
 * and finer pictures down to the canvas's own pixels (or the finest that the network has learned), in parts where the
 * whole would take long. One request is under way at a time; a newer one replaces it once it has become useless.
 */
import { Layers } from "./layers.js";
import { area, box, cells, clamp, extent, hull, inflate, intersect, rectOf, regionOver, SAME, WORLD } from "./view.js";

const DRAFT_MS = 70;
const PART_MS = 600;
const LADDER = 3; // between the pitches of successive pictures, roughly
const GRAIN = 4; // steps of the lattice to which the shapes of drafts are rounded
const MARGIN = { draft: 0.08, sharp: 0.02 }; // of the view, rendered around it

/** How many pixels the server renders in `target` ms, learned from its answers. */
class Pace {
  constructor(target, pixels, least) {
    Object.assign(this, { target, pixels, least });
  }

  learn(pixels, ms, most) {
    const fit = pixels * clamp(this.target / Math.max(ms, 1), 0.25, 4);
    if (pixels < this.pixels / 2 && fit < this.pixels) return; // small requests say little about large ones
    this.pixels = clamp(Math.sqrt(this.pixels * fit), this.least, most);
  }
}

export class WorldCanvas {
  #connection;
  #slot;
  #context;
  #layers = new Layers();
  #content = null;
  #generation = 0;
  #request = null;
  #failed = false;
  #heat = null;
  #heatRequest = null;
  #heatDone = "";
  #draft = new Pace(DRAFT_MS, 96 * 96, 48 * 48);
  #part = new Pace(PART_MS, 256 * 256, 128 * 128);
  #limits = { frame_px: 2 ** 22, side_px: 8192 };
  view = { zoom: 1, x: 0, y: 0 };
  /** {ms, pitch, quality} of the newest frame. */
  last = null;

  constructor(canvas, slot, connection) {
    this.canvas = canvas;
    this.#slot = slot;
    this.#connection = connection;
    this.#context = canvas.getContext("2d", { alpha: false });
  }

  /** Size in CSS pixels. */
  get size() {
    return { width: this.canvas.clientWidth, height: this.canvas.clientHeight };
  }

  /** Match the canvas's pixels to the screen's; returns whether that changed anything. */
  fit(ratio) {
    const [width, height] = [this.size.width, this.size.height].map((side) => Math.max(Math.round(side * ratio), 1));
    if (this.canvas.width === width && this.canvas.height === height) return false;
    Object.assign(this.canvas, { width, height });
    return true;
  }

  /**
   * Show another world: {network: an entry of the server's info, world, trunc, extrapolate, error, share: how many
   * canvases the server works for}.
   */
  show(content, limits) {
    this.#limits = limits;
    const { share, error, ...picture } = content;
    const text = JSON.stringify(picture);
    this.#draft.target = DRAFT_MS / share;
    if (this.#content?.text !== text) {
      this.#content = { ...picture, text };
      this.refresh();
    }
    this.#content.error = error;
    if (!error) this.#dropHeat();
  }

  /** Ask for everything again; what is shown stays until it is replaced. */
  refresh() {
    this.#generation += 1;
    this.#failed = false;
    this.#request = this.#heatRequest = null;
    this.#dropHeat();
  }

  /** Forget requests whose answers were lost. */
  forget() {
    this.#request = this.#heatRequest = null;
  }

  /** Drop everything. */
  clear() {
    this.#layers.clear();
    this.#dropHeat();
    this.#content = this.#request = this.#heatRequest = null;
  }

  /** The world, coarsely: {bitmap} or null. */
  get backdrop() {
    return this.#layers.backdrop;
  }

  /** Magnification of the learned pixels, in device pixels; 1 or less: none. */
  get enlargement() {
    return this.#content ? this.#finest / this.#camera().pitch : 1;
  }

  get errorDb() {
    return this.#heat?.db ?? null;
  }

  /** Fraction of the view, 0 to 1, that is as sharp as it can be. */
  get progress() {
    if (!this.#content || !this.canvas.width) return 0;
    const { shown } = this.#camera();
    const missing = this.#missing(this.#ladder().at(-1), shown);
    return 1 - missing.reduce((sum, rect) => sum + area(rect), 0) / area(shown);
  }

  /** Whether nothing is under way and nothing is left to ask for. */
  get settled() {
    if (!this.#content) return false;
    return this.#failed || (!this.#request && !this.#heatRequest && !this.#plan(false) && !this.#planHeat());
  }

  /** Send the next request where there is one to send. */
  tick(moving) {
    if (moving) this.#failed = false;
    if (!this.#content || !this.#connection.open || this.#failed || !this.canvas.width) return;
    if (!this.#request || this.#useless(this.#request, moving)) {
      const next = this.#plan(moving);
      if (next) this.#request = { ...next, id: this.#send(this.#slot, next, false) };
    }
    if (!moving && !this.#request && !this.#heatRequest) {
      const heat = this.#planHeat();
      if (heat) this.#heatRequest = { ...heat, id: this.#send(`${this.#slot}-error`, heat, true) };
    }
  }

  /** Take a frame from the server; returns whether it was for this canvas. */
  async receive(header, blob) {
    const heat = header.slot === `${this.#slot}-error`;
    if (!heat && header.slot !== this.#slot) return false;
    const request = heat ? this.#heatRequest : this.#request;
    if (header.id !== request?.id) return false;
    const bitmap = await createImageBitmap(blob);
    if (request !== (heat ? this.#heatRequest : this.#request)) {
      bitmap.close();
      return false;
    }
    if (heat) {
      this.#heatRequest = null;
      if (request.content !== this.#generation) return false;
      this.#dropHeat();
      this.#heat = { rect: rectOf(request.region), pitch: header.pitch, bitmap, db: header.error_db };
      this.#heatDone = request.key;
      return true;
    }
    this.#request = null;
    const { region, quality, backdrop, content } = request;
    const pace = request.moving || request.first ? this.#draft : this.#part;
    pace.learn(region.width * region.height, header.render_ms, this.#limits.frame_px);
    this.last = { ms: header.render_ms, pitch: region.pitch, quality };
    this.#layers.add(
      {
        rect: rectOf(region),
        pitch: region.pitch,
        bitmap,
        content,
        backdrop,
        sharp: quality === "sharp",
        born: performance.now(),
        fades: !request.moving && !request.first,
      },
      this.#camera(),
    );
    return true;
  }

  /** A request was refused; returns whether it was this canvas's, which then asks for nothing until something changes. */
  refused(id) {
    if (this.#heatRequest?.id === id) {
      this.#heatDone = this.#heatRequest.key;
      this.#heatRequest = null;
      return true;
    }
    if (this.#request?.id !== id) return false;
    this.#request = null;
    this.#failed = true;
    return true;
  }

  /** Paint the picture, `how`: {moving, calm}, as layers take it; returns whether it keeps changing by itself. */
  paint(now, how) {
    if (!this.canvas.width) return false;
    const camera = this.#camera();
    const fading = this.#layers.paint(this.#context, camera, now, how);
    if (this.#heat) this.#context.drawImage(this.#heat.bitmap, ...box(this.#heat, camera));
    return fading;
  }

  get #finest() {
    return 1 / this.#content.network.world_px;
  }

  get #step() {
    return Math.max(this.#content.network.resolution / 16, 1);
  }

  #camera() {
    const { width, height } = this.canvas;
    const pitch = 1 / (this.view.zoom * Math.min(width, height));
    const rect = extent(this.view, { width, height });
    return { width, height, pitch, rect, shown: intersect(rect, WORLD) };
  }

  /** What is wanted of the view, from draft to sharp: [{pitch, quality}]. */
  #ladder() {
    const { pitch, shown } = this.#camera();
    const target = this.#content.extrapolate ? pitch : Math.max(pitch, this.#finest);
    const coarsest = Math.min(1 / this.#content.network.resolution, Math.sqrt(area(shown)) / 48);
    const wanted = Math.sqrt(area(shown) / this.#draft.pixels);
    const octaves = Math.ceil(2 * Math.log2(Math.max(Math.min(wanted, coarsest) / target, 1))) / 2;
    const rungs = Math.max(Math.round(octaves / Math.log2(LADDER)), 1);
    const drafts = Array.from({ length: rungs }, (_, i) => target * 2 ** (octaves * (1 - i / rungs)));
    return [
      ...drafts.map((p) => ({ pitch: this.#whole(p, target), quality: "draft" })),
      { pitch: target, quality: "sharp" },
    ];
  }

  /** The next finer pitch with which the lattice ends at the world's edges; not finer than `target`. */
  #whole(pitch, target) {
    const step = this.#step;
    return Math.max(1 / (Math.ceil(1 / pitch / step - 1e-9) * step), target);
  }

  #missing(level, rect) {
    const { pitch, quality } = level;
    const finest = quality === "sharp" ? pitch * (1 - SAME) : pitch / 8;
    const fits = (layer) =>
      layer.content === this.#generation &&
      layer.pitch <= pitch * (1 + SAME) &&
      layer.pitch >= finest &&
      (quality === "draft" || layer.sharp);
    return this.#layers.missing(inflate(rect, -pitch / 100), fits);
  }

  /** The next request that would improve the picture, or null. */
  #plan(moving) {
    const { shown } = this.#camera();
    const ladder = this.#ladder();
    for (const [i, level] of ladder.entries()) {
      if (moving && i > 0) return null;
      const part = this.#nextPart(level, shown, i === 0);
      if (part) return this.#ask(part, level, { moving, first: i === 0 });
      if (i === 0 && !moving && this.backdrop?.content !== this.#generation) return this.#askBackdrop();
    }
    return null;
  }

  /** The part of `rect` nearest to its middle that lacks a picture of this level, with a margin; null if none does. */
  #nextPart(level, rect, whole) {
    if (!this.#missing(level, rect).length) return null;
    const most = whole ? this.#limits.frame_px * 0.7 : Math.min(this.#part.pixels, this.#limits.frame_px * 0.7);
    const [x, y] = [(rect.left + rect.right) / 2, (rect.top + rect.bottom) / 2];
    const distance = (r) => Math.hypot((r.left + r.right) / 2 - x, (r.top + r.bottom) / 2 - y);
    for (const cell of cells(rect, level.pitch, most).sort((a, b) => distance(a) - distance(b))) {
      const missing = this.#missing(level, cell);
      if (missing.length) {
        const margin = MARGIN[level.quality] * (rect.right - rect.left);
        return intersect(inflate(hull(missing), margin), WORLD);
      }
    }
    return null;
  }

  #ask(rect, { pitch, quality }, more) {
    const region = regionOver(rect, pitch, this.#step, quality === "draft" ? GRAIN : 1);
    return { region, quality, content: this.#generation, backdrop: false, ...more };
  }

  #askBackdrop() {
    const { resolution, world_px: finest } = this.#content.network;
    const side = clamp(2 ** Math.floor(Math.log2(Math.sqrt(this.#part.pixels))), resolution, Math.min(512, finest));
    return this.#ask(WORLD, { pitch: 1 / side, quality: "draft" }, { backdrop: true });
  }

  /** Whether a request under way should give way to a new one. */
  #useless(request, moving) {
    if (request.first) return false;
    if (request.content !== this.#generation) return true;
    if (request.backdrop && !moving) return false;
    if (moving) return true;
    return !request.backdrop && !intersect(rectOf(request.region), this.#camera().shown);
  }

  /** The cross-scale error of the view, in as many pixels as the server renders in a few parts. */
  #planHeat() {
    if (!this.#content?.error) return null;
    const { shown, pitch } = this.#camera();
    const target = this.#content.extrapolate ? pitch : Math.max(pitch, this.#finest);
    const coarsest = 0.5 / this.#content.network.resolution;
    const wanted = Math.sqrt(area(shown) / Math.min(2 * this.#part.pixels, this.#limits.frame_px * 0.7));
    const chosen = this.#whole(Math.max(Math.min(wanted, coarsest), target), target);
    const region = regionOver(shown, chosen, 2 * this.#step);
    region.width -= region.width % 2;
    region.height -= region.height % 2;
    const key = `${this.#generation} ${JSON.stringify(shown)}`;
    if (key === this.#heatDone || region.width < 2 || region.height < 2) return null;
    return { region, quality: "sharp", content: this.#generation, key };
  }

  #dropHeat() {
    this.#heat?.bitmap.close();
    this.#heat = null;
    this.#heatDone = "";
  }

  #send(slot, { region, quality }, error) {
    const { network, world, trunc, extrapolate } = this.#content;
    return this.#connection.send({
      type: "frame",
      slot,
      network: network.name,
      world,
      trunc,
      ...region,
      quality,
      extrapolate,
      error,
    });
  }
}
