/** The page: its state, and what connects the canvases, the controls and the server. */
import { read, write } from "./address.js";
import { WorldCanvas } from "./canvas.js";
import { Connection } from "./connection.js";
import { controls, driftOf } from "./controls.js";
import { filming } from "./film.js";
import { listen } from "./gestures.js";
import { bookmarks, History } from "./history.js";
import { returning } from "./idle.js";
import { keys } from "./keys.js";
import { Minimap } from "./minimap.js";
import { Motion } from "./motion.js";
import { checkpointName, readOut } from "./readouts.js";
import { saving } from "./save.js";
import { giving } from "./site.js";
import { clamp, constrain, extent, holding, intersect, panBy, pitchOf, screenAt, WORLD, worldAt } from "./view.js";
import { parse, randomWorld } from "./worlds.js";

const $ = (id) => document.getElementById(id);
const MOVING_MS = 120; // how long a change counts as movement
const REST_MS = 450; // without movement before the address follows
const TOAST_MS = 5000;
const DRIFT_PX = 300; // pixels of a drag per unit of drift
const SMALL = matchMedia("(max-width: 720px), (max-height: 480px)"); // as in style.css

class App {
  info = null;
  networks = [];
  frames = 0;
  #arrivals = [];
  #changed = 0;
  #painting = false;
  #resting = null;
  #toast = null;

  constructor() {
    this.state = read(location.hash);
    const socket = new URL("ws", new URL(".", location.href));
    socket.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    this.connection = new Connection(socket);
    const canvas = (slot) => $(`panel-${slot}`).querySelector("canvas");
    this.panels = ["a", "b"].map((slot) => new WorldCanvas(canvas(slot), slot, this.connection));
    this.motion = new Motion(this);
    this.minimap = new Minimap($("minimap"), ({ x, y }) => this.jump({ ...this.state.view, x, y }));
    this.saving = saving(this);
    this.film = filming(this);
    this.showControls = controls(this);
    bookmarks($("bookmark-form"), $("bookmarks"), () => this.state, (state) => this.apply(state));
    this.actions = {
      ...this.saving.actions,
      ...this.film.actions,
      ...giving(this).actions,
      in: () => this.zoom(1),
      out: () => this.zoom(-1),
      compare: () => this.toggleCompare(),
      home: () => this.go({ zoom: 1, x: 0, y: 0 }),
      help: () => $("help").showModal(),
      "close-help": () => $("help").close(),
      side: () => this.side($("side").hidden),
      random: () => this.settle({ world: randomWorld() }),
      previous: () => this.previousWorld(),
      undo: () => this.apply(this.history?.undo()),
      redo: () => this.apply(this.history?.redo()),
      swap: () => this.#swap(),
      reconnect: () => this.connection.connect(),
      keyframe: () => this.film.add(),
      copy: () => this.#copy(),
    };
    this.side(!SMALL.matches);
    this.#listen();
    const first = location.hash;
    returning(() => this.#begin(first), () => this.motion.active || this.film.rendering());
    this.connection.connect();
  }

  /* What others read. */

  get view() {
    return this.state.view;
  }

  /** Of one canvas, in CSS pixels. */
  get size() {
    return this.panels[0].size;
  }

  get shown() {
    return this.state.compare ? this.panels : this.panels.slice(0, 1);
  }

  get maxZoom() {
    const octaves = [this.state.network, this.state.compare?.network].map((name) => this.network(name)?.octaves ?? 0);
    return 2 ** Math.max(...octaves);
  }

  /** The server's entry for a checkpoint. */
  network(name) {
    return this.networks.find((network) => network.name === name);
  }

  /** Device pixels of the world that the canvas shows: {width, height}. */
  shownPixels() {
    const pitch = pitchOf(this.view, this.size) / devicePixelRatio;
    const rect = intersect(extent(this.view, this.size), WORLD);
    const pixels = (length) => Math.max(Math.round(length / pitch), 1);
    return { width: pixels(rect.right - rect.left), height: pixels(rect.bottom - rect.top) };
  }

  get moving() {
    return this.motion.active || performance.now() - this.#changed < MOVING_MS;
  }

  /** Whether everything that was asked for is on the screen. */
  get idle() {
    const still = !this.moving && !this.#painting;
    return this.connection.open && this.info !== null && still && this.shown.every((panel) => panel.settled);
  }

  /* What changes the state. */

  /** Make a change that may continue, such as of a slider. */
  change(patch) {
    this.state = { ...this.state, ...patch };
    this.#changed = performance.now();
    if (this.info) this.state.view = constrain(this.state.view, this.maxZoom);
    if (Object.keys(patch).some((key) => key !== "view")) this.#show();
    clearTimeout(this.#resting);
    this.#resting = setTimeout(() => this.#rest(), REST_MS);
    this.wake();
  }

  /** Make a finished change, which can be undone. */
  settle(patch) {
    this.change(patch);
    this.history?.commit(this.state);
    this.#show();
  }

  /** Move the view at once. */
  move(view) {
    if (this.info) this.change({ view });
  }

  /** Move the view at once, and stop what was moving it. */
  jump(view) {
    this.motion.stop();
    this.move(constrain(view, this.maxZoom));
  }

  /** Fly to a view. */
  go(view) {
    this.motion.fly(constrain(view, this.maxZoom));
    this.wake();
  }

  /** Fly through views in `ms`. */
  play(views, ms) {
    this.motion.play(views, ms);
    this.wake();
  }

  zoom(octaves) {
    this.motion.zoom(this.size.width / 2, this.size.height / 2, octaves);
    this.wake();
  }

  glide(dx, dy) {
    this.motion.glide(dx, dy);
    this.wake();
  }

  /** Show a whole state, or none, flying to its view. */
  apply(state) {
    if (!state) return;
    const { view, ...rest } = state;
    this.motion.stop();
    this.change(this.#legal(rest));
    this.go(view);
  }

  /** Show the page as it was opened. */
  #begin(address) {
    if (!this.info) return;
    $("help").close();
    document.activeElement.blur();
    for (const section of document.querySelectorAll("#side details")) section.open = section.id === "mix-section";
    this.side(!SMALL.matches);
    this.apply(read(address));
  }

  toggleCompare() {
    const { compare, world, network } = this.state;
    if (!compare) $("compare-section").open = true;
    const other = parse(world) ? String(parse(world).seed + 1) : "1";
    this.settle({ compare: compare ? null : { world: other, network } });
  }

  previousWorld() {
    const world = this.history?.previousWorld(this.state.world);
    if (world) this.settle({ world });
    else this.notify("There is no previous world.");
  }

  side(open) {
    $("side").hidden = !open;
    document.querySelector("#tools [data-do=side]").setAttribute("aria-expanded", String(open));
    this.wake();
  }

  /** Open the controls at a section. */
  reveal(id) {
    this.side(true);
    $(`${id}-section`).open = true;
    $(`${id}-section`).scrollIntoView({ block: "nearest" });
    $(`${id}-section`).querySelector("input").focus();
  }

  notify(text) {
    $("toast").textContent = text;
    $("toast").hidden = false;
    clearTimeout(this.#toast);
    this.#toast = setTimeout(() => ($("toast").hidden = true), TOAST_MS);
  }

  changed() {
    this.wake();
  }

  /* The loop: it runs while something moves, and after every frame received. */

  wake() {
    if (this.#painting) return;
    this.#painting = true;
    requestAnimationFrame((now) => this.#turn(now));
  }

  #turn(now) {
    this.#painting = false;
    const before = this.state.view;
    this.motion.step(now);
    const moving = this.moving;
    let again = this.motion.active;
    for (const panel of this.shown) {
      panel.fit(devicePixelRatio);
      panel.view = this.state.view;
      panel.tick(moving);
      again = panel.paint(now, { moving, calm: this.motion.calm.matches }) || again;
    }
    this.minimap.paint(this.panels[0].backdrop?.bitmap, this.state.view, this.size, devicePixelRatio);
    this.#arrivals = this.#arrivals.filter((time) => now - time < 1000);
    readOut(this, this.#arrivals.length);
    this.saving.show();
    if (again || moving || before !== this.state.view) this.wake();
  }

  #rest() {
    this.#resting = null;
    if (this.motion.active) {
      this.#resting = setTimeout(() => this.#rest(), REST_MS);
      return;
    }
    this.history?.commit(this.state);
    this.#show();
  }

  /** Bring controls and panels up to date with the state. */
  #show() {
    if (!this.info) return;
    const { state } = this;
    $("panel-b").hidden = !state.compare;
    const { trunc, extrapolate, error } = state;
    const share = this.shown.length;
    [state, state.compare].forEach((of, i) => {
      if (!of) this.panels[i].clear();
      else {
        const network = this.network(of.network);
        this.panels[i].show({ network, world: of.world, trunc, extrapolate, error, share }, this.info.limits);
      }
    });
    const shown = [state, state.compare].map((of) => of && this.network(of.network)).filter(Boolean);
    $("licence").textContent = [["licence", "Licence of the weights"], ["credit", "Credit"]]
      .map(([key, name]) => [name, [...new Set(shown.map((network) => network[key]).filter(Boolean))]])
      .map(([name, texts]) => (texts.length ? `${name}: ${texts.join("; ")}. ` : ""))
      .join("");
    this.showControls(this.networks);
    this.film.show();
    for (const [name, able] of [
      ["undo", this.history?.canUndo],
      ["redo", this.history?.canRedo],
      ["previous", this.history?.hasWorldBefore(state.world)],
    ]) {
      document.querySelector(`#side [data-do=${name}]`).disabled = !able;
    }
    this.wake();
  }

  /* The server. */

  async #connected() {
    for (const panel of this.panels) panel.forget();
    const info = await this.#facts();
    if (!info) return;
    const again = this.info !== null;
    this.info = info;
    $("about").textContent = `Version ${info.version} on ${info.device}${info.run ? `, run ${info.run}` : ""}.`;
    this.#listed(info.networks);
    this.history ??= new History(this.state, (state) => this.apply(state));
    if (again) for (const panel of this.panels) panel.refresh();
    this.#show();
  }

  /** The server's info, or null where it is gone again or refuses. */
  async #facts() {
    try {
      const answer = await fetch("api/info");
      if (answer.ok) return await answer.json();
      this.notify(`The server refuses this page (${answer.status}); open the address that zoom.py printed.`);
    } catch {
      this.connection.lose();
    }
    return null;
  }

  /** Take the server's list of checkpoints; the ones shown may have gone. */
  #listed(networks) {
    if (!this.info) return;
    const fresh = usable(networks).filter(({ name }) => this.networks.length && !this.network(name));
    this.networks = usable(networks);
    if (fresh.length) this.notify(`New: ${fresh.map(checkpointName).join(", ")}.`);
    this.state = { ...this.state, ...this.#legal(this.state) };
    this.state.view = constrain(this.state.view, this.maxZoom);
    this.#show();
  }

  /** A state whose worlds can be read and whose checkpoints are there. */
  #legal({ world, trunc, network, compare, ...rest }) {
    const known = (name) => {
      if (this.network(name)) return name;
      if (name) this.notify(`There is no checkpoint ${name} here; showing ${this.info.default}.`);
      return this.info.default;
    };
    const readable = (text) => (parse(text) ? text : "0");
    const second = compare && { world: readable(compare.world), network: known(compare.network) };
    return { ...rest, world: readable(world), trunc: clamp(trunc, -2, 2), network: known(network), compare: second };
  }

  #swap() {
    const { world, network, compare } = this.state;
    if (compare) this.settle({ world: compare.world, network: compare.network, compare: { world, network } });
  }

  async #copy() {
    this.history?.commit(this.state);
    const address = new URL(`#${write(this.state)}`, location.href).href;
    try {
      await navigator.clipboard.writeText(address);
      this.notify("Link copied.");
    } catch {
      this.notify(address);
    }
  }

  #listen() {
    const { connection } = this;
    connection.addEventListener("state", ({ detail }) => {
      const open = detail.state === "open";
      $("banner").hidden = open;
      $("s-state").textContent = open ? "connected" : "disconnected";
      $("s-state").toggleAttribute("data-open", open);
      clearInterval(this.countdown);
      if (open) this.#connected();
      else {
        const tell = () => {
          const seconds = Math.max(Math.ceil((detail.retryAt - Date.now()) / 1000), 0);
          const when = seconds ? ` in ${seconds} s` : "";
          $("banner").firstElementChild.textContent = `The server does not answer. Retrying${when}…`;
        };
        tell();
        this.countdown = setInterval(tell, 250);
      }
    });
    connection.addEventListener("frame", async ({ detail: { header, blob } }) => {
      for (const panel of this.panels) {
        if (await panel.receive(header, blob)) {
          this.frames += 1;
          this.#arrivals.push(performance.now());
        }
      }
      this.wake();
    });
    connection.addEventListener("error", ({ detail: { id, message } }) => {
      for (const panel of this.panels) panel.refused(id);
      this.notify(message);
      this.wake();
    });
    connection.addEventListener("networks", ({ detail }) => this.#listed(detail.networks));

    this.panels.forEach((panel, i) => this.#gestures(panel, i));
    new ResizeObserver(() => this.wake()).observe($("panels"));
    keys(this);
    document.addEventListener("click", ({ target }) => {
      const action = target.closest("[data-do]")?.dataset.do;
      if (action) this.actions[action]();
    });
    setInterval(() => this.#arrivals.length && this.wake(), 500);
  }

  #gestures(panel, i) {
    const { motion } = this;
    let [grabbed, before] = [null, null];
    listen(panel.canvas, {
      touch: () => {
        motion.stop();
        before = this.state;
      },
      zoom: (px, py, octaves) => {
        motion.zoom(px, py, octaves);
        this.wake();
      },
      pan: (dx, dy) => this.move(panBy(this.view, this.size, dx, dy, this.maxZoom)),
      grab: (px, py) => (grabbed = { ...worldAt(this.view, this.size, px, py), zoom: this.view.zoom }),
      pinch: (px, py, factor) =>
        this.move(holding(grabbed, this.size, px, py, grabbed.zoom * factor, this.maxZoom)),
      fling: (vx, vy) => {
        motion.fling(vx, vy);
        this.wake();
      },
      drift: (dx, dy) => this.change(driftOf(before, i, dx / DRIFT_PX, dy / DRIFT_PX)),
      drifted: () => this.settle({}),
    });
  }
}

/** The checkpoints that can be shown. */
const usable = (networks) => networks.filter((network) => network.octaves !== null);

const app = new App();

/** Read-only, for tests and for the curious. */
window.explorer = Object.freeze({
  view: () => ({ ...app.view, ...app.size, pitch: pitchOf(app.view, app.size), maxZoom: app.maxZoom }),
  state: () => structuredClone(app.state),
  idle: () => app.idle,
  worldAt: (px, py) => worldAt(app.view, app.size, px, py),
  screenAt: (x, y) => screenAt(app.view, app.size, x, y),
  connection: () => app.connection.state,
  frames: () => app.frames,
  progress: () => app.shown.map((panel) => panel.progress),
});
