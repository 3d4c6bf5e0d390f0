// Plays the assistant's audio from a jitter buffer, and counts what was played.
//
// Takes:   {kind: "audio", item, samples: Float32Array}, {kind: "end", item} (no more will come),
//          {kind: "stop", item} (drop the rest at once; without `item`: of everything).
// Gives:   {kind: "started", item, time}, {kind: "progress", item, played},
//          {kind: "finished", item, played, time}, {kind: "stopped", item, played, time},
//          {kind: "starved", item}.
// `time` is on the context's clock: of the first sample, or of the first silent one.

const PROGRESS_SECONDS = 0.1;
// Audio that has to be there before an item begins. Grows when the network proves worse than that.
const FIRST_BUFFER_SECONDS = 0.04;
const LONGEST_BUFFER_SECONDS = 0.4;
// Long enough not to click, short enough to be silence at once.
const FADE_SAMPLES = 96;

class Item {
  constructor(name) {
    this.name = name;
    this.pieces = [];
    this.offset = 0; // in the first piece
    this.buffered = 0;
    this.played = 0;
    this.ended = false;
    this.running = false; // enough was buffered
    this.started = false; // its first sample was played
  }

  add(samples) {
    this.pieces.push(samples);
    this.buffered += samples.length;
  }

  /** Moves up to `output.length - from` samples to `output`; how many there were. */
  take(output, from) {
    let place = from;
    while (place < output.length && this.pieces.length) {
      const piece = this.pieces[0];
      const count = Math.min(output.length - place, piece.length - this.offset);
      output.set(piece.subarray(this.offset, this.offset + count), place);
      place += count;
      this.offset += count;
      if (this.offset === piece.length) {
        this.pieces.shift();
        this.offset = 0;
      }
    }
    this.buffered -= place - from;
    this.played += place - from;
    return place - from;
  }
}

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.items = []; // in the order of playing
    this.wanted = FIRST_BUFFER_SECONDS * sampleRate;
    this.fade = null;
    this.told = 0; // when progress was last told
    this.port.onmessage = ({ data }) => this[data.kind](data);
  }

  audio({ item, samples }) {
    this.item(item).add(samples);
  }

  end({ item }) {
    this.item(item).ended = true;
  }

  stop({ item }) {
    const first = this.items[0];
    const stopped = item === undefined ? this.items : this.items.filter((it) => it.name === item);
    this.items = this.items.filter((it) => !stopped.includes(it));
    for (const it of stopped) {
      let silentAfter = 0;
      if (it === first && it.started) {
        this.fade = new Float32Array(FADE_SAMPLES);
        silentAfter = it.take(this.fade, 0);
        for (let i = 0; i < FADE_SAMPLES; i++) this.fade[i] *= 1 - (i + 1) / FADE_SAMPLES;
      }
      const time = currentTime + silentAfter / sampleRate;
      this.port.postMessage({ kind: "stopped", item: it.name, played: it.played, time });
    }
  }

  item(name) {
    let found = this.items.find((it) => it.name === name);
    if (!found) this.items.push((found = new Item(name)));
    return found;
  }

  process(_, [[output]]) {
    let place = 0;
    if (this.fade) {
      output.set(this.fade.subarray(0, output.length));
      place = Math.min(this.fade.length, output.length);
      this.fade = null;
    }
    while (place < output.length && this.items.length) {
      const item = this.items[0];
      if (!item.running && (item.buffered >= this.wanted || item.ended)) item.running = true;
      if (!item.running) break;
      if (!item.started && item.buffered) {
        item.started = true;
        this.tell("started", item, place);
      }
      place += item.take(output, place);
      if (item.buffered) break;
      if (item.ended) {
        this.items.shift();
        this.tell("finished", item, place);
      } else {
        if (place < output.length) this.starve(item, place);
        break;
      }
    }
    if (this.items.length && currentTime - this.told >= PROGRESS_SECONDS) {
      this.told = currentTime;
      if (this.items[0].started) this.tell("progress", this.items[0], place);
    }
    return true;
  }

  /** Nothing came in time: this item, and those after it, wait for more from now on. */
  starve(item, place) {
    item.running = false;
    this.wanted = Math.min(2 * this.wanted, LONGEST_BUFFER_SECONDS * sampleRate);
    this.tell("starved", item, place);
  }

  tell(kind, item, place) {
    const time = currentTime + place / sampleRate;
    this.port.postMessage({ kind, item: item.name, played: item.played, time });
  }
}

registerProcessor("playback", Playback);
