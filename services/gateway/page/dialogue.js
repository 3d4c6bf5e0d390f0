// What the server's events mean for the parts of the page, and what the user does for the server.

import { decode, RATE_HZ } from "./pcm.js";
import { waterfall } from "./waterfall.js";

const QUIET_MS = 2000;
const KEPT_TIMINGS = 16;
// Nobody has to hear of these: they only say that something was over already.
const HARMLESS = new Set(["response_cancel_not_active"]);
const PCM = { type: "audio/pcm", rate: RATE_HZ };

/**
 * Events: `session` (detail: the session as the server has it), `ready` (detail: minmo.ready),
 * `problem` (detail: words), `outage` (detail: whether the server lacks a part of itself),
 * `said` (detail: what the user said, when it is final), `change` (who does what is another).
 */
export class Dialogue extends EventTarget {
  #parts;
  #response = null; // the one that is being made
  #ended = new Map(); // when the user's turns ended, by item
  #lastEnd = null;
  #timing = new Map(); // of the assistant's items
  #ours = new Set(); // items whose audio came by this connection: the server knows them
  #history = null; // items of before, until the session is ready; then null
  #updates = []; // session updates that wait for the answer to the one before
  #updating = false;

  /** Args: {connection, speaker, transcript, floor, curves, sentTimes}. */
  constructor(parts) {
    super();
    this.#parts = parts;
    parts.connection.addEventListener("message", ({ detail }) => this.#take(detail));
    parts.connection.addEventListener("state", ({ detail }) => {
      if (detail.state !== "open") this.#lost();
    });
    parts.speaker.addEventListener("playback", ({ detail }) => this.#played(detail));
    parts.speaker.addEventListener("started", ({ detail }) => {
      this.#timed(detail.item).started = detail.at;
      parts.floor.begin("it", detail.at);
      this.#changed();
    });
    parts.speaker.addEventListener("silent", ({ detail }) => {
      const timing = this.#timed(detail.item);
      if (timing.stopped !== null) timing.silentMs = Math.max(0, detail.at - timing.stopped);
      if (timing.report) this.#explain(detail.item);
      parts.floor.end("it", detail.at);
      this.#changed();
    });
  }

  /** Whether an answer is being made or played. */
  get answering() {
    return this.#response !== null || this.#parts.speaker.playing;
  }

  /** Tells the server what the page needs, and the user's choices of `choose`. */
  configure(choices) {
    this.#update({
      audio: {
        input: {
          format: PCM,
          transcription: { model: "minmo" },
          turn_detection: { type: "semantic_vad" },
        },
        output: { format: PCM },
      },
    });
    this.choose(choices);
  }

  /** Tells the server the user's choices: {instructions, voice, manner, written}. */
  choose({ instructions, voice, manner, written }) {
    this.#update({
      output_modalities: [written ? "text" : "audio"],
      instructions,
      audio: { output: { voice: voice || null } },
      minmo: { events: true, instruct: manner },
    });
  }

  /** Sends what the user typed; an answer that is under way stops first. False: nobody took it. */
  async type(text) {
    if (this.stop()) await this.#quiet();
    this.#lastEnd = performance.now();
    const content = [{ type: "input_text", text }];
    const item = { type: "message", role: "user", content };
    return (
      this.#parts.connection.send({ type: "conversation.item.create", item }) &&
      this.#parts.connection.send({ type: "response.create" })
    );
  }

  /** The user pressed stop: silence at once. False if there was nothing to stop. */
  stop() {
    if (!this.answering) return false;
    const now = performance.now();
    for (const item of this.#parts.speaker.items) {
      const timing = this.#timed(item);
      timing.stopped ??= now;
      timing.stoppedHere = true;
    }
    // Before the reports of what was played, which say that no more will be.
    if (this.#response !== null) this.#parts.connection.send({ type: "response.cancel" });
    this.#parts.speaker.stop();
    return true;
  }

  #played({ item, playedSamples, finished }) {
    if (!this.#ours.has(item)) return;
    const { connection } = this.#parts;
    if (finished) this.#ours.delete(item);
    if (finished && this.#response === null && this.#timed(item).stoppedHere) {
      // The response is over for the server: there is nothing to cancel, but something to cut.
      connection.send({
        type: "conversation.item.truncate",
        item_id: item,
        content_index: 0,
        audio_end_ms: Math.floor((playedSamples * 1000) / RATE_HZ),
      });
    }
    connection.send({ type: "minmo.playback", item_id: item, played_samples: playedSamples, finished });
  }

  #update(session) {
    this.#updates.push({ type: "session.update", session: { type: "realtime", ...session } });
    if (!this.#updating) this.#updated();
  }

  /** The server has answered an update, or there is none: sends the next. */
  #updated() {
    const next = this.#updates.shift();
    this.#updating = next !== undefined && this.#parts.connection.send(next);
    if (!this.#updating) this.#updates = [];
  }

  /** Waits, but not long, until the server has ended its answer. */
  #quiet() {
    if (this.#response === null) return Promise.resolve();
    return new Promise((resolve) => {
      const over = () => {
        if (this.#response !== null) return;
        clearTimeout(timer);
        this.removeEventListener("change", over);
        resolve();
      };
      const timer = setTimeout(() => {
        this.removeEventListener("change", over);
        resolve();
      }, QUIET_MS);
      this.addEventListener("change", over);
    });
  }

  #take(event) {
    const { speaker, transcript, floor, curves, sentTimes } = this.#parts;
    const id = event.item_id;
    switch (event.type) {
      case "session.created":
        // Another connection: items may have the names of others before.
        sentTimes.reset();
        speaker.forget();
        this.#ours.clear();
        this.#timing.clear();
        this.#ended.clear();
        this.#history = new Map();
        this.#emit("session", event.session);
        break;
      case "session.updated":
        this.#updated();
        break;
      case "minmo.ready":
        this.#resume(event);
        break;

      case "input_audio_buffer.speech_started":
        // Comes when the user has the floor: a word of agreement over the answer is none.
        for (const item of speaker.items) this.#cut(item);
        break;
      case "input_audio_buffer.speech_stopped":
        this.#lastEnd = sentTimes.at(event.audio_end_ms) ?? performance.now();
        this.#ended.set(id, this.#lastEnd);
        break;
      case "input_audio_buffer.committed":
        transcript.add(id, "user", event.previous_item_id);
        break;

      case "conversation.item.added":
      case "conversation.item.created":
      case "conversation.item.done":
        if (this.#history) this.#history.set(event.item.id, event);
        else this.#show(event);
        break;
      case "conversation.item.deleted":
        transcript.remove(id);
        break;
      case "conversation.item.input_audio_transcription.delta":
        transcript.add(id, "user");
        transcript.append(id, event.delta);
        break;
      case "conversation.item.input_audio_transcription.completed":
        transcript.add(id, "user");
        transcript.set(id, event.transcript, true);
        if (event.transcript) this.#emit("said", event.transcript);
        break;
      case "conversation.item.input_audio_transcription.failed":
        transcript.remove(id);
        break;

      case "response.created":
        this.#response = event.response.id;
        break;
      case "response.output_item.added":
        if (event.item.type === "message") transcript.add(event.item.id, "assistant");
        break;
      case "response.output_audio.delta":
        this.#ours.add(id);
        speaker.play(id, decode(event.delta));
        break;
      case "response.output_audio.done":
        speaker.end(id);
        break;
      case "response.output_audio_transcript.delta":
      case "response.output_text.delta":
        transcript.add(id, "assistant");
        transcript.append(id, event.delta);
        break;
      case "response.output_audio_transcript.done":
        transcript.set(id, event.transcript, true);
        break;
      case "response.output_text.done":
        transcript.set(id, event.text, true);
        break;
      case "response.done":
        this.#done(event.response);
        break;

      case "minmo.turn_event":
        this.#happened(event);
        break;
      case "minmo.turn_report":
        this.#reported(event);
        break;
      case "minmo.turn_changed":
        transcript.heard(id, event.heard_text, event.generated_text);
        break;
      case "minmo.probabilities":
        curves.add(
          sentTimes.at(event.audio_ms) ?? performance.now(),
          event.assistant_turn,
          event.user_turn,
        );
        return; // several a second, and nothing else is new
      case "error":
        if (this.#updating) this.#updated();
        if (!HARMLESS.has(event.error.code)) this.#emit("problem", event.error.message);
        break;
    }
    this.#changed();
  }

  /** The session is ready; what the server knows of its history is what counts. */
  #resume(ready) {
    const { transcript } = this.#parts;
    const history = this.#history;
    this.#history = null;
    this.#updating = false;
    this.#updates = [];
    if (history && !ready.resumed) {
      transcript.clear();
    } else if (history) {
      transcript.release((id, role) => history.get(id)?.item.role !== role);
      for (const event of history.values()) this.#show(event);
    }
    this.#emit("ready", ready);
  }

  #show({ item, previous_item_id: after }) {
    if (item.type !== "message") return;
    const { transcript } = this.#parts;
    const text = (item.content ?? []).map((part) => part.text ?? part.transcript ?? "").join("");
    const shown = transcript.text(item.id);
    transcript.add(item.id, item.role, after);
    if (!text || shown === text || item.status === "in_progress") return;
    // The page may know more: what was made, but not heard before the connection was lost.
    if (item.role === "assistant") transcript.heard(item.id, text, shown.startsWith(text) ? shown : text);
    else transcript.set(item.id, text, true);
  }

  #done(response) {
    this.#response = null;
    if (response.status === "cancelled") {
      for (const item of response.output ?? []) this.#cut(item.id);
    } else if (response.status === "failed") {
      const why = response.status_details?.error?.message;
      this.#emit("problem", why ?? "The answer could not be finished.");
    }
  }

  /** Somebody took the floor from the assistant: not a sample more. */
  #cut(item) {
    const { speaker, floor } = this.#parts;
    if (!speaker.items.includes(item)) return;
    const timing = this.#timed(item);
    if (timing.stopped !== null) return;
    timing.stopped = performance.now();
    speaker.stop(item);
    floor.cut(timing.stopped);
  }

  #happened({ kind, item_id: item, audio_ms: position }) {
    const { floor, sentTimes } = this.#parts;
    const at = sentTimes.at(position) ?? performance.now();
    if (kind === "user_speech_started") floor.begin("you", at);
    else if (kind === "user_speech_stopped") floor.end("you", at);
    else if (kind === "interrupted" && item) this.#cut(item);
    else if (kind === "recovering") this.#emit("outage", true);
    else if (kind === "recovered") this.#emit("outage", false);
  }

  #reported(report) {
    const { transcript } = this.#parts;
    const id = report.item_id;
    if (!id) return; // it ended before a word
    const timing = this.#timed(id);
    timing.report = report;
    timing.asked = this.#ended.get(report.user_item_id) ?? this.#lastEnd;
    this.#ended.delete(report.user_item_id);
    transcript.add(id, "assistant");
    transcript.heard(id, report.heard_text, report.generated_text);
    this.#explain(id);
  }

  /** Shows where an answer's time went; again, when its silence is known only after its report. */
  #explain(id) {
    const { report, asked, started, silentMs } = this.#timed(id);
    const heardMs = started !== null && asked !== null ? started - asked : null;
    this.#parts.transcript.attach(id, waterfall(report, heardMs, silentMs));
  }

  #lost() {
    const { speaker, floor } = this.#parts;
    this.#response = null;
    this.#history = null;
    this.#updates = [];
    this.#updating = false;
    this.#ended.clear();
    // What was sent counts as heard, so it is played; more won't come.
    for (const item of speaker.items) speaker.end(item);
    floor.end("you", performance.now());
    this.#changed();
  }

  #timed(item) {
    let timing = this.#timing.get(item);
    if (!timing) {
      timing = {
        asked: null, // the user's turn had ended
        started: null, // the first sound
        stopped: null, // the decision to stop came
        stoppedHere: false, // by the user's hand
        silentMs: null, // from then to silence
        report: null,
      };
      this.#timing.set(item, timing);
      if (this.#timing.size > KEPT_TIMINGS) this.#timing.delete(this.#timing.keys().next().value);
    }
    return timing;
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
