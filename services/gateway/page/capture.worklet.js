// The microphone's audio as frames of 20 ms: 16 bit, one channel, 24 kHz.
//
// The browser may run the device at any rate, and not every browser lets an AudioContext of another
// rate take a microphone; so the rate is converted here.

const RATE_HZ = 24000;
const FRAME = 480;
const ZERO_CROSSINGS = 12;

function gcd(a, b) {
  return b ? gcd(b, a % b) : a;
}

/** Converts a stream's rate by a polyphase filter: a windowed sinc, cut off at the lower rate. */
class Resampler {
  constructor(fromHz, toHz) {
    const common = gcd(fromHz, toHz);
    this.up = toHz / common;
    this.down = fromHz / common;
    const widening = Math.max(1, fromHz / toHz);
    this.half = Math.ceil(ZERO_CROSSINGS * widening);
    this.phases = Array.from({ length: this.up }, (_, phase) => this.taps(phase, widening));
    this.kept = new Float32Array(2 * this.half);
    this.phase = 0; // of the next output sample, in 1/up of an input sample
  }

  taps(phase, widening) {
    const taps = new Float32Array(2 * this.half + 1);
    let sum = 0;
    for (let place = 0; place < taps.length; place++) {
      const distance = (place - this.half - phase / this.up) / widening;
      const x = Math.PI * distance;
      const sinc = x === 0 ? 1 : Math.sin(x) / x;
      const window = Math.cos(x / (2 * (ZERO_CROSSINGS + 1))) ** 2;
      taps[place] = sinc * window;
      sum += taps[place];
    }
    return taps.map((tap) => tap / sum);
  }

  /** The samples that can be made now; the last `half` input samples wait for what follows. */
  convert(input) {
    const joined = new Float32Array(this.kept.length + input.length);
    joined.set(this.kept);
    joined.set(input, this.kept.length);
    const output = [];
    let position = 0; // in `joined`, where the taps begin
    while (position + 2 * this.half < joined.length) {
      const taps = this.phases[this.phase];
      let sum = 0;
      for (let place = 0; place < taps.length; place++) sum += taps[place] * joined[position + place];
      output.push(sum);
      this.phase += this.down;
      position += Math.floor(this.phase / this.up);
      this.phase %= this.up;
    }
    // A step may go past the end by less than the taps are long.
    this.kept = joined.slice(position);
    return output;
  }
}

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = sampleRate === RATE_HZ ? null : new Resampler(sampleRate, RATE_HZ);
    this.frame = new Int16Array(FRAME);
    this.filled = 0;
  }

  process([channels]) {
    if (!channels.length) return true; // the device has not started
    const samples = this.resampler ? this.resampler.convert(channels[0]) : channels[0];
    for (const sample of samples) {
      const clipped = Math.max(-1, Math.min(1, sample));
      this.frame[this.filled++] = Math.round(clipped * 32767);
      if (this.filled === FRAME) {
        this.port.postMessage(this.frame, [this.frame.buffer]);
        this.frame = new Int16Array(FRAME);
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
