// The WebSocket to the server, kept up: when it is lost it is opened again into the same session.

const PATH = "/v1/realtime";
const FIRST_BACKOFF_MS = 250;
const LAST_BACKOFF_MS = 8000;
const READY_MS = 15000;
const PROBE_MS = 5000;
// Four seconds of audio that the network did not take: whatever the socket says, it is dead.
const LONGEST_BACKLOG_BYTES = 256 * 1024;
const SERVICE_RESTART = 1012;
const SESSION_KEY = "minmo.session";
const API_KEY = "minmo.key";
// Trying again by itself would not help, or would take the session from another page.
const LASTING = new Set(["session_taken_over", "session_idle", "invalid_api_key"]);
// Too many connections of the user's, or of all.
const BUSY = new Set([429, 503]);
const INVALID = "invalid_request_error";

/**
 * Events: `state` (detail: {state, message}), where state is "off", "connecting", "open", or
 * "waiting" for the next try, with the server's reason if it gave one; `message` (detail: an event of the protocol);
 * `refused` (detail: {code, message}): it will not try again by itself; the code is the protocol's.
 */
export class Connection extends EventTarget {
  state = "off";
  #socket = null;
  #backoff = FIRST_BACKOFF_MS;
  #timer = 0;
  #lastError = null;

  constructor() {
    super();
    addEventListener("online", () => this.state === "waiting" && this.#connect());
  }

  get sessionId() {
    return sessionStorage.getItem(SESSION_KEY) ?? "";
  }

  set sessionId(id) {
    if (id) sessionStorage.setItem(SESSION_KEY, id);
    else sessionStorage.removeItem(SESSION_KEY);
  }

  get key() {
    return sessionStorage.getItem(API_KEY) ?? "";
  }

  set key(key) {
    if (key) sessionStorage.setItem(API_KEY, key);
    else sessionStorage.removeItem(API_KEY);
  }

  /** Connects, unless it does or is already. */
  open() {
    if (this.state === "waiting" || this.state === "off") this.#connect();
  }

  close() {
    this.#drop();
    this.#tell("off");
  }

  /** Sends an event; false if there is nobody to take it, then it is lost. */
  send(event) {
    if (this.state !== "open") return false;
    if (this.#socket.bufferedAmount > LONGEST_BACKLOG_BYTES) {
      this.#lost();
      return false;
    }
    this.#socket.send(JSON.stringify(event));
    return true;
  }

  #connect() {
    this.#drop();
    this.#lastError = null;
    this.#tell("connecting");
    const url = new URL(PATH, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("minmo", "1");
    if (this.sessionId) url.searchParams.set("session_id", this.sessionId);
    const protocols = ["realtime"];
    if (this.key) protocols.push(`openai-insecure-api-key.${this.key}`);
    let socket;
    try {
      socket = new WebSocket(url, protocols);
    } catch {
      // A key with characters that no header may have.
      this.#refuse("invalid_api_key", "This key can’t be right: it has characters that keys don’t have.");
      return;
    }
    this.#socket = socket;
    // Also once the socket is open: a server that gives no session is none.
    this.#timer = setTimeout(() => this.#lost(), READY_MS);
    socket.onmessage = ({ data }) => this.#take(JSON.parse(data));
    socket.onclose = ({ code }) => this.#closed(code);
  }

  #take(event) {
    if (event.type === "minmo.ready") {
      clearTimeout(this.#timer);
      this.#backoff = FIRST_BACKOFF_MS;
      this.sessionId = event.session_id;
      this.#tell("open");
    }
    this.#lastError = event.type === "error" ? event.error : null;
    this.dispatchEvent(new CustomEvent("message", { detail: event }));
  }

  async #closed(code) {
    const wasOpen = this.state === "open";
    const error = this.#lastError;
    this.#drop();
    if (error?.code === "session_not_found" && this.sessionId) {
      this.sessionId = "";
      this.#connect();
      return;
    }
    if (error && (LASTING.has(error.code) || (!wasOpen && error.type === INVALID))) {
      this.#refuse(error.code, error.message);
      return;
    }
    if (wasOpen && code === SERVICE_RESTART) {
      // This server stops, between two turns; another one is there, as a rule.
      this.#connect();
      return;
    }
    // A browser does not tell why a WebSocket was refused; a plain request does.
    const refusal = wasOpen ? null : await this.#probe();
    if (this.state === "off") return;
    if (refusal?.status === 401) this.#refuse("invalid_api_key", refusal.message);
    else if (refusal?.status === 403) this.#refuse("", refusal.message);
    else this.#wait(BUSY.has(refusal?.status) ? refusal.message : "");
  }

  /** What the server answers to a request without an upgrade; null if there is no server. */
  async #probe() {
    const url = new URL(PATH, location.href);
    url.searchParams.set("minmo", "1");
    if (this.sessionId) url.searchParams.set("session_id", this.sessionId);
    try {
      const response = await fetch(url, {
        headers: this.key ? { Authorization: `Bearer ${this.key}` } : {},
        signal: AbortSignal.timeout(PROBE_MS),
      });
      const body = await response.json().catch(() => null);
      return { status: response.status, message: body?.error?.message ?? "" };
    } catch {
      return null;
    }
  }

  #lost() {
    this.#drop();
    this.#wait();
  }

  #wait(message = "") {
    // Not all at the same moment, when a server comes back to many pages.
    const pause = this.#backoff * (0.75 + 0.5 * Math.random());
    this.#backoff = Math.min(2 * this.#backoff, LAST_BACKOFF_MS);
    this.#timer = setTimeout(() => this.#connect(), pause);
    this.#tell("waiting", message);
  }

  #refuse(code, message) {
    this.#tell("off");
    this.dispatchEvent(new CustomEvent("refused", { detail: { code, message } }));
  }

  /** Lets go of the socket; closing a dead one takes long, so nobody waits for it. */
  #drop() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onmessage = socket.onclose = null;
    socket.close();
  }

  #tell(state, message = "") {
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, message } }));
  }
}
