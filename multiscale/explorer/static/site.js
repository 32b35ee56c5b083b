/** The model to take home as a page that needs no server, made by the server. */
import { download, reason } from "./save.js";

const $ = (id) => document.getElementById(id);

/** Wire the section to `app` (state). Returns {actions}. */
export function giving(app) {
  let running = null;

  async function make() {
    const { network } = app.state;
    running = new AbortController();
    busy("The page is being made; that takes a minute, or a few for large networks.");
    try {
      const query = new URLSearchParams(network ? { network } : {});
      const answer = await fetch(`api/site.zip?${query}`, { signal: running.signal });
      if (!answer.ok) throw new Error(await reason(answer));
      const name = /filename="?([^";]+)/.exec(answer.headers.get("Content-Disposition") ?? "")?.[1];
      download(await answer.blob(), name ?? "page.zip");
      running = null;
      busy("The page is saved.");
    } catch (error) {
      running = null;
      busy(error.name === "AbortError" ? "" : error.message);
    }
  }

  function busy(text) {
    $("site-state").textContent = text;
    document.querySelector("[data-do=site]").disabled = running !== null;
    document.querySelector("[data-do=site-cancel]").hidden = running === null;
  }

  return { actions: { site: () => running ?? make(), "site-cancel": () => running?.abort() } };
}
