/** The sidebar's controls of worlds and checkpoints: they show the page's state and change it. */
import { checkpointName } from "./readouts.js";
import { drifted, format, isLatent, parse } from "./worlds.js";

const $ = (id) => document.getElementById(id);

/**
 * Wire the controls to `app` (state; change(patch) during a change, settle(patch) for a finished one;
 * notify(text)). Returns `show(networks)`, which brings them up to date.
 */
export function controls(app) {
  const invalid = (input, bad) => input.setAttribute("aria-invalid", String(bad));
  const edit = (change) => {
    const parts = parse(app.state.world);
    if (parts) app.change({ world: format({ ...parts, ...change(parts) }) });
  };
  const live = (id, act) => {
    $(id).addEventListener("input", act);
    $(id).addEventListener("change", () => app.settle({}));
  };
  const submit = (form, input, act) =>
    $(form).addEventListener("submit", (event) => {
      event.preventDefault();
      const text = $(input).value.trim();
      invalid($(input), parse(text) === null);
      if (parse(text)) act(text);
      else app.notify(`"${text}" is not a world: write a seed such as 3, a mix 3~7:0.25 or a drift 3d0.4:-0.2.`);
    });

  submit("world-form", "world", (world) => app.settle({ world }));
  submit("compare-form", "compare-world", (world) => app.settle({ compare: { ...second(), world } }));
  live("trunc", () => app.change({ trunc: Number($("trunc").value) }));
  const drift = () => edit(() => ({ drift: [Number($("drift-x").value), Number($("drift-y").value)] }));
  live("drift-x", drift);
  live("drift-y", drift);

  const mix = () => {
    const term = $("mix-seed").value.trim();
    invalid($("mix-seed"), term !== "" && !isLatent(term));
    if (term !== "" && !isLatent(term)) return;
    const weight = Number($("mix-weight").value);
    edit(({ mixes }) => ({ mixes: term === "" ? [] : [{ term, weight }, ...mixes.slice(1)] }));
  };
  live("mix-seed", mix);
  live("mix-weight", mix);

  const style = () => {
    const term = $("style-seed").value.trim();
    const [first, last] = [Number($("style-first").value), Number($("style-last").value)];
    const top = app.network(app.state.network).layers - 1;
    const wrong = !Number.isInteger(first) || !Number.isInteger(last) || first < 0 || last < first || last > top;
    invalid($("style-seed"), term !== "" && !isLatent(term));
    for (const id of ["style-first", "style-last"]) invalid($(id), wrong);
    if (wrong || (term !== "" && !isLatent(term))) return;
    edit(({ styles }) => ({ styles: term === "" ? [] : [{ term, first, last }, ...styles.slice(1)] }));
  };
  for (const id of ["style-seed", "style-first", "style-last"]) live(id, style);

  const second = () => app.state.compare ?? { world: app.state.world, network: app.state.network };
  for (const id of ["extrapolate", "error"]) {
    $(id).addEventListener("change", () => app.settle({ [id]: $(id).checked }));
  }
  $("network").addEventListener("change", () => app.settle({ network: $("network").value }));
  $("compare-network").addEventListener("change", () =>
    app.settle({ compare: { ...second(), network: $("compare-network").value } }),
  );
  $("compare").addEventListener("change", () => app.toggleCompare());

  function fill(select, networks, chosen) {
    const newest = [...networks].reverse();
    const names = newest.map(({ name }) => name);
    if (names.join("\n") !== [...select.options].map((option) => option.value).join("\n")) {
      select.replaceChildren(...newest.map((network) => new Option(checkpointName(network), network.name)));
    }
    select.value = chosen;
  }
  const put = (id, value) => {
    if (document.activeElement !== $(id)) $(id).value = value;
  };
  const slide = (id, value) => {
    $(id).value = value;
    document.querySelector(`output[for="${id}"]`).textContent = Number(value).toFixed(2);
  };

  return (networks) => {
    const { state } = app;
    const parts = parse(state.world);
    if (parts) invalid($("world"), false);
    put("world", state.world);
    slide("trunc", state.trunc);
    slide("drift-x", parts?.drift[0] ?? 0);
    slide("drift-y", parts?.drift[1] ?? 0);
    const [mixed, styled] = [parts?.mixes[0], parts?.styles[0]];
    put("mix-seed", mixed?.term ?? "");
    slide("mix-weight", mixed?.weight ?? 0.5);
    $("mix-weight").disabled = !mixed;
    put("style-seed", styled?.term ?? "");
    if (styled) {
      put("style-first", styled.first);
      put("style-last", styled.last);
    }
    const top = app.network(state.network).layers - 1;
    for (const id of ["style-first", "style-last"]) $(id).max = top;
    $("style-hint").textContent = `of 0 to ${top}`;
    $("extrapolate").checked = state.extrapolate;
    $("error").checked = state.error;
    $("legend").hidden = !state.error;
    $("compare").checked = state.compare !== null;
    $("compare-fields").disabled = !state.compare;
    put("compare-world", second().world);
    fill($("network"), networks, state.network);
    fill($("compare-network"), networks, second().network);
  };
}

/** The change of state by a drift of one panel's world (0: the first, 1: the second). */
export function driftOf(state, panel, dx, dy) {
  if (panel === 0) return { world: drifted(state.world, dx, dy) };
  return { compare: { ...state.compare, world: drifted(state.compare.world, dx, dy) } };
}
