/** A path of views, and its rendering as a film by the server. */
import { button, Kept } from "./history.js";
import { reason } from "./save.js";
import { framed } from "./view.js";

const $ = (id) => document.getElementById(id);
const POLL_MS = 400;
const PATH = "multiscale-explorer-film";

/**
 * Wire the section to `app` (state, size, network(name), notify(text), changed(), go(view), play(views, ms)).
 * Returns {show(), actions, aspect(): [width, height], add(), rendering(): whether a film is}.
 */
export function filming(app) {
  const path = new Kept(PATH);
  path.items = path.items.filter(({ zoom, x, y }) => [zoom, x, y].every(Number.isFinite));
  let job = null;

  const values = () => ["width", "height", "seconds", "fps"].map((name) => Number($(`film-${name}`).value));
  const aspect = () => {
    const [width, height] = values();
    return width > 0 && height > 0 ? [width, height] : null;
  };

  /** The film's frame of a view: its longer side spans 1/zoom of the world, and it lies within the world. */
  const keyframe = (view) => {
    const [width, height] = aspect() ?? [16, 9];
    const rect = framed(view, app.size, width, height);
    const zoom = 1 / Math.max(rect.right - rect.left, rect.bottom - rect.top);
    return { zoom: Math.max(zoom, 1), x: (rect.left + rect.right) / 2, y: (rect.top + rect.bottom) / 2 };
  };

  function list() {
    $("keyframes").replaceChildren(
      ...path.items.map((view, i) => {
        const row = document.createElement("li");
        const text = `${i + 1}.  ${view.zoom.toFixed(2)}×  at ${view.x.toFixed(3)}, ${view.y.toFixed(3)}`;
        row.append(
          button(text, () => app.go(view)),
          button("✕", () => set(path.items.filter((_, j) => j !== i)), `Remove keyframe ${i + 1}`),
        );
        return row;
      }),
    );
    show();
  }
  function set(items) {
    path.set(items);
    list();
  }

  function show() {
    if (!app.info) return;
    const [width, height, seconds, fps] = values();
    const enough = path.items.length > 1;
    const finest = Math.max(...path.items.map((view) => keyframe(view).zoom)) * Math.max(width, height);
    const times = finest / app.network(app.state.network).world_px;
    const enlarged = times > 1.005 ? `, enlarged up to ${times.toFixed(1)}× where it is deepest` : "";
    $("film-hint").textContent = enough
      ? `${Math.round(seconds * fps)} frames of ${width} × ${height}${enlarged}.`
      : "Add at least two views: the film's start and end.";
    $("film-form").querySelector(".main").disabled = !enough || job !== null;
    for (const name of ["film-play", "film-clear"]) {
      document.querySelector(`[data-do=${name}]`).disabled = !path.items.length;
    }
  }

  /** Fly the path in the film's time; from the current view if it has only one. */
  function play() {
    app.play(path.items.length > 1 ? path.items : [app.state.view, ...path.items], values()[2] * 1000);
  }

  async function render() {
    const { network, world, trunc } = app.state;
    const [width, height, seconds, fps] = values();
    const body = { network, world, trunc, width, height, fps, seconds, keyframes: path.items.map(keyframe) };
    const headers = { "Content-Type": "application/json" };
    running({});
    $("film-link").hidden = true;
    try {
      const answer = await fetch("api/films", { method: "POST", headers, body: JSON.stringify(body) });
      if (!answer.ok) throw new Error(await reason(answer));
      running(await answer.json());
      await follow(job.id);
    } catch (error) {
      $("film-state").textContent = `The film failed: ${error.message}`;
    } finally {
      running(null);
    }
  }

  async function follow(id) {
    const start = performance.now();
    for (;;) {
      const answer = await fetch(`api/films/${id}`);
      if (!answer.ok) throw new Error(await reason(answer));
      const { state, progress, message } = await answer.json();
      $("film-progress").value = progress;
      const seconds = ((performance.now() - start) * (1 - progress)) / progress / 1000;
      const left = seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`;
      const percent = `${Math.floor(progress * 100)} % rendered`;
      $("film-state").textContent = progress < 0.02 ? percent : `${percent}, about ${left} left`;
      if (state === "done") {
        $("film-link").href = `api/films/${id}/film.mp4`;
        $("film-link").download = `world-${app.state.world}.mp4`;
        $("film-link").hidden = false;
        $("film-state").textContent = "The film is ready.";
      } else if (state === "cancelled") $("film-state").textContent = "The film was cancelled.";
      else if (state === "failed") throw new Error(message);
      if (state !== "rendering") return;
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }

  function running(now) {
    job = now;
    $("film-progress").hidden = job === null;
    $("film-progress").value = 0;
    $("film-form").querySelector("[data-do=film-cancel]").hidden = job === null;
    show();
  }

  $("film-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!job && path.items.length > 1) render();
  });
  for (const name of ["width", "height", "seconds", "fps"]) {
    $(`film-${name}`).addEventListener("input", () => {
      show();
      app.changed();
    });
  }
  $("film-section").addEventListener("toggle", () => app.changed());
  list();

  return {
    show,
    aspect,
    rendering: () => job !== null,
    add() {
      $("film-section").open = true;
      set([...path.items, { ...app.state.view }]);
      app.notify(`View ${path.items.length} added to the film.`);
    },
    actions: {
      "film-play": () => play(),
      "film-clear": () => set([]),
      "film-cancel": () => job?.id && fetch(`api/films/${job.id}`, { method: "DELETE" }),
    },
  };
}
