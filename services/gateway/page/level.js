// How loud a part of the audio graph is now.

const SAMPLES = 1024;
const QUIETEST_DB = -60;

export class Level {
  constructor(context) {
    this.node = new AnalyserNode(context, { fftSize: SAMPLES });
    this.samples = new Float32Array(SAMPLES);
  }

  /** Loudness from 0 (silence) to 1, even steps in decibels. */
  read() {
    this.node.getFloatTimeDomainData(this.samples);
    let sum = 0;
    for (const sample of this.samples) sum += sample * sample;
    const decibels = 10 * Math.log10(sum / SAMPLES + 1e-9);
    return Math.max(0, Math.min(1, 1 - decibels / QUIETEST_DB));
  }
}
