/** Saving what is shown as a PNG of any size: the largest part of the view that has the image's aspect. */
import { framed } from "./view.js";

const $ = (id) => document.getElementById(id);
const LEAST_PX = 16;

/**
 * Wire the form to `app` (state, size, ratio, info, network(name), notify(text), changed()).
 * Returns {show(), start(), actions, aspect(): [width, height]}.
 */
export function saving(app) {
  let running = null;
  let touched = false;
  const sides = () => [Number($("save-width").value), Number($("save-height").value)];
  const legal = ([width, height]) => [width, height].every((side) => Number.isInteger(side) && side >= LEAST_PX);

  /** The image asked for: {region, beyond: times finer than learned}. */
  const wanted = ([width, height]) => {
    const rect = framed(app.state.view, app.size, width, height);
    const pitch = (rect.right - rect.left) / width;
    const region = { left: rect.left, top: rect.top, pitch, width, height };
    return { region, beyond: 1 / (pitch * app.network(app.state.network).world_px) };
  };

  /** Fill in the view's own pixels, or the most that the network has learned of it. */
  const fit = (finest) => {
    const { width, height } = app.shownPixels();
    const { beyond } = wanted([width, height]);
    const { side_px: side, image_px: all } = app.info.limits;
    const most = Math.min(side / Math.max(width, height), Math.sqrt(all / (width * height)));
    const scale = finest ? Math.min(1 / beyond, most) : 1;
    put(Math.floor(width * scale + 1e-6), Math.floor(height * scale + 1e-6));
  };
  const put = (width, height) => {
    $("save-width").value = Math.max(width, LEAST_PX);
    $("save-height").value = Math.max(height, LEAST_PX);
    show();
    app.changed();
  };

  function problem(size) {
    const { side_px: side, image_px: all } = app.info.limits;
    if (!legal(size)) return `Both sides must be whole numbers of at least ${LEAST_PX} pixels.`;
    if (Math.max(...size) > side) return `The longer side may have at most ${side} pixels.`;
    if (size[0] * size[1] > all) return `At most ${megapixels(all)} megapixels, not ${megapixels(size[0] * size[1])}.`;
    const { beyond } = wanted(size);
    if (beyond > 1.000001 && !app.state.extrapolate) {
      const most = Math.floor(Math.max(...size) / beyond + 1e-6);
      return `${beyond.toFixed(1)}× finer than learned: take at most ${most} pixels a side, or tick "Extrapolate".`;
    }
    return null;
  }

  function show() {
    if (!$("save-section").open || !app.info) return;
    if (!touched) {
      touched = true;
      fit(false);
      return;
    }
    const size = sides();
    const wrong = problem(size);
    const { beyond } = legal(size) ? wanted(size) : { beyond: 1 };
    const learned = beyond > 1.000001 ? `extrapolated ${beyond.toFixed(1)}×` : "within what was learned";
    $("save-hint").textContent = wrong ?? `${megapixels(size[0] * size[1])} megapixels, ${learned}.`;
    $("save-form").querySelector(".main").disabled = wrong !== null || running !== null;
  }

  async function save() {
    const { state } = app;
    const { region } = wanted(sides());
    const query = new URLSearchParams({
      network: state.network,
      world: state.world,
      trunc: state.trunc,
      ...region,
      depth: $("save-depth").value,
      extrapolate: Number(state.extrapolate),
    });
    running = new AbortController();
    busy(true);
    try {
      const answer = await fetch(`api/image.png?${query}`, { signal: running.signal });
      if (!answer.ok) throw new Error(await reason(answer));
      const name = /filename="?([^";]+)/.exec(answer.headers.get("Content-Disposition") ?? "")?.[1];
      download(await answer.blob(), name ?? `world-${state.world}.png`);
      app.notify("The image is saved.");
    } catch (error) {
      app.notify(error.name === "AbortError" ? "The image was cancelled." : `The image failed: ${error.message}`);
    } finally {
      running = null;
      busy(false);
    }
  }

  function busy(on) {
    $("save-form").querySelector(".main").textContent = on ? "Rendering…" : "Save PNG";
    $("save-form").querySelector("[data-do=save-cancel]").hidden = !on;
    show();
  }

  $("save-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running && !problem(sides())) save();
  });
  for (const id of ["save-width", "save-height"]) {
    $(id).addEventListener("input", () => {
      show();
      app.changed();
    });
  }
  $("save-section").addEventListener("toggle", () => {
    show();
    app.changed();
  });

  return {
    show,
    aspect: () => (legal(sides()) ? sides() : null),
    actions: {
      "save-view": () => fit(false),
      "save-finest": () => fit(true),
      "save-cancel": () => running?.abort(),
    },
  };
}

const megapixels = (pixels) => (pixels / 1e6).toFixed(2);

/** One sentence on why a request failed. */
export async function reason(answer) {
  const text = (await answer.text()).trim();
  try {
    return JSON.parse(text).message ?? text;
  } catch {
    return text.slice(0, 300) || `the server answered ${answer.status}.`;
  }
}

/** Have the browser keep a blob as a file. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
