/** What the page has shown: undo and redo, the browser's back and forward, the worlds visited, bookmarks. */
import { read, write } from "./address.js";

const UNDO_STEPS = 200;
const BOOKMARKS = "multiscale-explorer-bookmarks";

export class History {
  #undo = [];
  #redo = [];
  #worlds = [];
  #now;

  /** `apply(state)` is called when the browser goes back or forward or its address is edited. */
  constructor(state, apply) {
    this.#now = write(state);
    this.#worlds.push(state.world);
    history.replaceState(null, "", `#${this.#now}`);
    addEventListener("popstate", () => {
      const state = read(location.hash);
      this.#record(write(state));
      apply(state);
    });
  }

  /** The page has come to rest in `state`. A new world gets an entry in the browser's history, a new view does not. */
  commit(state) {
    const text = write(state);
    if (text === this.#now) return;
    const picture = (of) => write({ ...read(of), view: { zoom: 1, x: 0, y: 0 } });
    if (picture(text) === picture(this.#now)) history.replaceState(null, "", `#${text}`);
    else history.pushState(null, "", `#${text}`);
    this.#record(text);
    if (state.world !== this.#worlds.at(-1)) this.#worlds.push(state.world);
  }

  /** The state before (or, after that, the next one), or null. */
  undo() {
    return this.#step(this.#undo, this.#redo);
  }

  redo() {
    return this.#step(this.#redo, this.#undo);
  }

  /** The world shown before `world`, or null; worlds after it are forgotten. */
  previousWorld(world) {
    while (this.#worlds.at(-1) === world) this.#worlds.pop();
    return this.#worlds.at(-1) ?? null;
  }

  get canUndo() {
    return this.#undo.length > 0;
  }

  get canRedo() {
    return this.#redo.length > 0;
  }

  hasWorldBefore(world) {
    return this.#worlds.some((other) => other !== world);
  }

  #record(text) {
    if (text === this.#now) return;
    this.#undo.push(this.#now);
    this.#undo.splice(0, this.#undo.length - UNDO_STEPS);
    this.#redo = [];
    this.#now = text;
  }

  #step(from, to) {
    if (!from.length) return null;
    to.push(this.#now);
    this.#now = from.pop();
    history.replaceState(null, "", `#${this.#now}`);
    return read(this.#now);
  }
}

/** A list of JSON values that outlives the page where the browser allows it. */
export class Kept {
  constructor(key) {
    this.key = key;
    try {
      this.items = JSON.parse(localStorage.getItem(key)) ?? [];
    } catch {
      this.items = [];
    }
    if (!Array.isArray(this.items)) this.items = [];
  }

  set(items) {
    this.items = items;
    try {
      localStorage.setItem(this.key, JSON.stringify(items));
    } catch {
      // no storage here: kept as long as the page
    }
  }
}

/** The list of bookmarks {name, address} on the page; `go(state)` shows one. */
export function bookmarks(form, list, current, go) {
  const kept = new Kept(BOOKMARKS);
  const name = form.querySelector("input");
  const render = () => {
    list.replaceChildren(
      ...kept.items.map((item, i) => {
        const row = document.createElement("li");
        row.append(
          button(item.name, () => go(read(item.address))),
          button("✕", () => keep(kept.items.filter((_, j) => j !== i)), `Delete bookmark ${item.name}`),
        );
        return row;
      }),
    );
  };
  const keep = (items) => {
    kept.set(items);
    render();
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const state = current();
    const named = name.value.trim() || `${state.world} at ${state.view.zoom.toFixed(1)}×`;
    keep([...kept.items, { name: named, address: write(state) }]);
    name.value = "";
  });
  render();
}

/** A button in a list. */
export function button(text, act, label = null) {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = text;
  if (label) element.setAttribute("aria-label", label);
  element.addEventListener("click", act);
  return element;
}
