/**
 * The WebSocket to the server, with a heartbeat, and a new connection whenever the old one is lost.
 *
 * Events: "state" {state: "open" | "lost", retryAt: ms | null}, "frame" {header, blob}, "error" {id, slot, message},
 * "networks" {networks}.
 */

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 5000;
const BEAT_MS = 5000;
const SILENCE_MS = 20000;

export class Connection extends EventTarget {
  #socket = null;
  #id = 0;
  #losses = 0;
  #asked = null;
  #retry = null;
  state = "connecting";

  constructor(url) {
    super();
    this.url = url;
    setInterval(() => this.#beat(), BEAT_MS);
    addEventListener("online", () => this.connect());
  }

  /** Connect now, unless connected or about to be. */
  connect() {
    if (this.#socket) return;
    clearTimeout(this.#retry);
    const socket = new WebSocket(this.url);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#asked = null;
    socket.onopen = () => {
      this.#losses = 0;
      this.#change("open", null);
    };
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = () => this.#closed(socket);
  }

  /** Give up a connection whose server does not answer. */
  lose() {
    if (this.#socket) this.#closed(this.#socket);
  }

  get open() {
    return this.state === "open";
  }

  /** Send a message with a fresh id, and return the id. */
  send(message) {
    const id = ++this.#id;
    this.#socket.send(JSON.stringify({ ...message, id }));
    return id;
  }

  #receive(data) {
    this.#asked = null;
    if (typeof data === "string") {
      const { type, ...detail } = JSON.parse(data);
      if (type === "error" || type === "networks") this.dispatchEvent(new CustomEvent(type, { detail }));
      return;
    }
    const length = new DataView(data).getUint32(0);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    const blob = new Blob([new Uint8Array(data, 4 + length)], { type: header.mime });
    this.dispatchEvent(new CustomEvent("frame", { detail: { header, blob } }));
  }

  #beat() {
    if (!this.open) return;
    if (this.#asked === null) {
      this.#asked = performance.now();
      this.send({ type: "ping" });
    } else if (performance.now() - this.#asked > SILENCE_MS) this.lose();
  }

  #closed(socket) {
    if (socket !== this.#socket) return;
    socket.onclose = socket.onmessage = socket.onopen = null;
    socket.close();
    this.#socket = null;
    const wait = Math.min(FIRST_WAIT_MS * 2 ** this.#losses, LONGEST_WAIT_MS);
    this.#losses += 1;
    this.#retry = setTimeout(() => this.connect(), wait);
    this.#change("lost", Date.now() + wait);
  }

  #change(state, retryAt) {
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, retryAt } }));
  }
}
