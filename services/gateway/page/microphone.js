// The microphone: asks for it, gives its audio in frames, and says in words why there is none.

import { Level } from "./level.js";
import { RATE_HZ } from "./pcm.js";

const REASONS = {
  NotAllowedError:
    "The browser does not let this page use the microphone. Allow it beside the address, then try again – or type below.",
  NotFoundError: "No microphone was found. Plug one in and try again – or type below.",
  NotReadableError:
    "The microphone is in use by another program, or does not answer. Free it and try again – or type below.",
  OverconstrainedError:
    "The microphone that was chosen is gone. Choose another in the settings – or type below.",
};
// Times of the frames of ten minutes.
const KEPT_FRAMES = 30000;

/** Why there is no microphone, for people. */
export class MicrophoneError extends Error {}

/** Events: `frame` (detail: Int16Array of 20 ms), `lost` (the device went away). */
export class Microphone extends EventTarget {
  #stream = null;
  #context = null;
  #level = null;

  get on() {
    return this.#stream !== null;
  }

  /** Opens it. Throws MicrophoneError. */
  async start({ deviceId, echoCancellation }) {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new MicrophoneError(
        window.isSecureContext
          ? "This browser gives pages no microphone. A current Chrome, Edge, Firefox or Safari does. You can type below."
          : "Browsers give the microphone only to pages that come over HTTPS or from this machine. You can type below.",
      );
    }
    this.stop();
    const wanted = {
      channelCount: 1,
      echoCancellation,
      noiseSuppression: true,
      autoGainControl: true,
      ...(deviceId && { deviceId: { exact: deviceId } }),
    };
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    } catch (error) {
      throw new MicrophoneError(REASONS[error.name] ?? `The microphone gave an error: ${error.message}`);
    }
    const context = new AudioContext({ latencyHint: "interactive" });
    try {
      await context.audioWorklet.addModule(new URL("capture.worklet.js", import.meta.url));
      const source = new MediaStreamAudioSourceNode(context, { mediaStream: stream });
      const worklet = new AudioWorkletNode(context, "capture", {
        numberOfOutputs: 0,
        channelCount: 1,
        channelCountMode: "explicit",
      });
      worklet.port.onmessage = ({ data }) => this.#give(data);
      this.#level = new Level(context);
      source.connect(worklet);
      source.connect(this.#level.node);
      await context.resume();
    } catch (error) {
      for (const track of stream.getTracks()) track.stop();
      await context.close();
      throw new MicrophoneError(`The browser could not start the microphone: ${error.message}`);
    }
    stream.getAudioTracks()[0].addEventListener("ended", () => {
      if (this.#stream !== stream) return;
      this.stop();
      this.dispatchEvent(new Event("lost"));
    });
    this.#stream = stream;
    this.#context = context;
  }

  /** Closes it; the browser's sign that the page listens goes out. */
  stop() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#context?.close();
    this.#stream = this.#context = this.#level = null;
  }

  level() {
    return this.#level?.read() ?? 0;
  }

  #give(frame) {
    if (this.on) this.dispatchEvent(new CustomEvent("frame", { detail: frame }));
  }
}

/** When the microphone's audio at a position of the stream was sent. */
export class SentTimes {
  #ends = [];
  #times = [];

  constructor() {
    this.reset();
  }

  /** A new stream counts from 0. */
  reset() {
    this.#ends = [];
    this.#times = [];
    this.samples = 0;
  }

  add(count) {
    this.samples += count;
    this.#ends.push(this.samples);
    this.#times.push(performance.now());
    if (this.#ends.length > 2 * KEPT_FRAMES) {
      this.#ends.splice(0, KEPT_FRAMES);
      this.#times.splice(0, KEPT_FRAMES);
    }
  }

  /** Time on the page's clock, or null if that was not sent. */
  at(milliseconds) {
    const sample = (milliseconds * RATE_HZ) / 1000;
    let low = 0;
    let high = this.#ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#ends[middle] < sample) low = middle + 1;
      else high = middle;
    }
    return this.#times[low] ?? null;
  }
}
