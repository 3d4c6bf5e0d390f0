// The loudspeaker: plays what comes, stops at once, and knows what has left it.

import { Level } from "./level.js";
import { RATE_HZ } from "./pcm.js";

const LONGEST_LATENCY_SECONDS = 0.5;
const KEPT_ITEMS = 64;

/**
 * Events: `playback` (detail: {item, playedSamples, finished}), `started` and `silent`
 * (detail: {item, at}: when that is heard, on the page's clock), `starved`.
 */
export class Speaker extends EventTarget {
  #context = null;
  #worklet = null;
  #level = null;
  #opening = null;
  #over = new Set(); // items of which nothing more is to be played
  #active = new Set(); // items that were begun, or wait
  #left = new Map(); // samples that have left the speaker, by item
  #sink = "";

  /** Whether this browser, on this kind of address, can play live audio at all. */
  get available() {
    return "AudioWorkletNode" in window;
  }

  /** Whether it has something to play. */
  get playing() {
    return this.#active.size > 0;
  }

  /** Items that it plays or is going to. */
  get items() {
    return [...this.#active];
  }

  /** Makes it ready; must be called from a click or a key, or the browser keeps it silent. */
  async open() {
    this.#opening ??= this.#open();
    try {
      await this.#opening;
    } catch (error) {
      this.#opening = null;
      throw error;
    }
    await this.#context.resume();
  }

  async #open() {
    const context = new AudioContext({ sampleRate: RATE_HZ, latencyHint: "interactive" });
    await context.audioWorklet.addModule(new URL("playback.worklet.js", import.meta.url));
    const worklet = new AudioWorkletNode(context, "playback", {
      numberOfInputs: 0,
      outputChannelCount: [1],
    });
    worklet.port.onmessage = ({ data }) => this.#hear(data);
    const level = new Level(context);
    worklet.connect(context.destination);
    worklet.connect(level.node);
    this.#context = context;
    this.#worklet = worklet;
    this.#level = level;
    if (this.#sink) await this.#useSink();
  }

  /** Whether the browser lets the page choose the loudspeaker. */
  get selectable() {
    return this.available && "setSinkId" in AudioContext.prototype;
  }

  /** Plays on another device; "" is the default one. A device that is gone gives the default. */
  async choose(deviceId) {
    if (!this.selectable || deviceId === this.#sink) return;
    this.#sink = deviceId;
    if (this.#context) await this.#useSink();
  }

  async #useSink() {
    try {
      await this.#context.setSinkId(this.#sink);
    } catch {
      this.#sink = "";
      await this.#context.setSinkId("");
    }
  }

  play(item, samples) {
    if (this.#over.has(item) || !this.#worklet) return;
    this.#active.add(item);
    this.#worklet.port.postMessage({ kind: "audio", item, samples }, [samples.buffer]);
  }

  /** No more of an item will come. */
  end(item) {
    if (this.#active.has(item)) this.#worklet.port.postMessage({ kind: "end", item });
  }

  /** Drops what is left of an item, or of all, at once; what comes later of it too. */
  stop(item) {
    for (const stopped of item === undefined ? this.items : [item]) {
      this.#refuse(stopped);
      if (this.#active.has(stopped)) this.#worklet.port.postMessage({ kind: "stop", item: stopped });
    }
  }

  /** Another connection: its items are new, whatever their names. */
  forget() {
    this.#over.clear();
    this.#left.clear();
  }

  level() {
    return this.#level?.read() ?? 0;
  }

  /** Seconds between the worklet and the ear, as far as the browser knows. */
  get latencySeconds() {
    if (!this.#context) return 0;
    const { baseLatency = 0, outputLatency = 0 } = this.#context;
    return Math.min(baseLatency + outputLatency, LONGEST_LATENCY_SECONDS);
  }

  #hear({ kind, item, played, time }) {
    const wait = this.latencySeconds;
    if (kind === "progress") {
      this.#report(item, played - Math.round(wait * RATE_HZ), false);
    } else if (kind === "started") {
      this.#emit("started", { item, at: this.#heardAt(time) });
    } else if (kind === "finished") {
      // It is heard to its end only when the device has played what it holds.
      setTimeout(() => {
        this.#forget(item);
        this.#report(item, played, true);
        this.#emit("silent", { item, at: performance.now() });
      }, wait * 1000);
    } else if (kind === "stopped") {
      this.#forget(item);
      // What the device holds can't be called back: it will be heard.
      this.#report(item, played, true);
      this.#emit("silent", { item, at: this.#heardAt(time) });
    } else {
      this.#emit(kind, { item });
    }
  }

  #heardAt(contextTime) {
    const ahead = contextTime - this.#context.currentTime + this.latencySeconds;
    return performance.now() + ahead * 1000;
  }

  #forget(item) {
    this.#active.delete(item);
    this.#refuse(item);
  }

  /** Plays nothing of an item that comes late. */
  #refuse(item) {
    this.#over.add(item);
    if (this.#over.size > KEPT_ITEMS) this.#over.delete(this.#over.values().next().value);
  }

  #report(item, playedSamples, finished) {
    const before = this.#left.get(item);
    const left = Math.max(0, playedSamples, before ?? 0);
    if (left === before && !finished) return;
    if (finished) this.#left.delete(item);
    else this.#left.set(item, left);
    this.#emit("playback", { item, playedSamples: left, finished });
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
