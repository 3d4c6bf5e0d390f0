// Who holds the floor: two lanes over time, you above, MinMo below; the height is how loud.

import { SHOWN_MS, Timeline } from "./timeline.js";

const STEP_MS = 100;
const WORDS = {
  you: "You are speaking.",
  it: "MinMo is speaking.",
  both: "You are both speaking.",
  nobody: "Nobody is speaking.",
};

export class FloorStrip {
  #timeline;
  #canvas;
  #loudness = []; // {time, you, it}
  #stretches = []; // {who, from, to}; `to` is Infinity while it lasts
  #cuts = []; // times of interruptions

  constructor(canvas) {
    this.#canvas = canvas;
    this.#timeline = new Timeline(canvas);
  }

  /** Somebody ("you", "it") takes the floor. */
  begin(who, at) {
    this.end(who, at);
    this.#stretches.push({ who, from: at, to: Infinity });
    this.#describe();
  }

  end(who, at) {
    for (const stretch of this.#stretches) {
      if (stretch.who === who && stretch.to === Infinity) stretch.to = Math.max(at, stretch.from);
    }
    this.#describe();
  }

  /** MinMo fell silent because the user spoke. */
  cut(at) {
    this.#cuts.push(at);
  }

  /** "you", "it", "both" or "nobody". */
  get holder() {
    const holders = this.#stretches.filter(({ to }) => to === Infinity).map(({ who }) => who);
    return holders.length > 1 ? "both" : (holders[0] ?? "nobody");
  }

  /** Takes how loud both are now, 0 to 1; more often than it needs is fine. */
  hear(now, you, it) {
    const last = this.#loudness.at(-1);
    if (last && now - last.time < STEP_MS) {
      last.you = Math.max(last.you, you);
      last.it = Math.max(last.it, it);
      return;
    }
    this.#loudness.push({ time: now, you, it });
    const oldest = now - SHOWN_MS - STEP_MS;
    while (this.#loudness[0].time < oldest) this.#loudness.shift();
    this.#stretches = this.#stretches.filter(({ to }) => to > oldest);
    this.#cuts = this.#cuts.filter((time) => time > oldest);
  }

  draw(now) {
    const { paint, colours, width, height } = this.#timeline;
    this.#timeline.clear();
    const lane = height / 2;
    const x = (time) => this.#timeline.x(time, now);
    const bar = Math.max(1, (width * STEP_MS) / SHOWN_MS - 1);
    for (const [who, middle] of [["you", lane / 2], ["it", lane * 1.5]]) {
      paint.fillStyle = colours.line;
      paint.fillRect(0, middle - 0.5, width, 1);
      paint.fillStyle = colours[who];
      const stretches = this.#stretches.filter((stretch) => stretch.who === who);
      paint.globalAlpha = 0.14;
      for (const { from, to } of stretches) {
        const left = x(from);
        const length = Math.max(2, x(Math.min(to, now)) - left);
        paint.beginPath();
        paint.roundRect(left, middle - lane / 2 + 3, length, lane - 6, 5);
        paint.fill();
      }
      for (const sound of this.#loudness) {
        const tall = Math.max(0, sound[who] - 0.15) * (lane - 10);
        if (tall < 1) continue;
        const holds = stretches.some(({ from, to }) => sound.time >= from - STEP_MS && sound.time <= to);
        paint.globalAlpha = holds ? 1 : 0.3;
        paint.beginPath();
        paint.roundRect(x(sound.time) - bar, middle - tall / 2, bar, tall, bar / 2);
        paint.fill();
      }
      paint.globalAlpha = 1;
    }
    paint.strokeStyle = colours.soft;
    paint.setLineDash([2, 3]);
    for (const time of this.#cuts) {
      paint.beginPath();
      paint.moveTo(x(time), 2);
      paint.lineTo(x(time), height - 2);
      paint.stroke();
    }
    paint.setLineDash([]);
  }

  refresh() {
    this.#timeline.refresh();
  }

  #describe() {
    this.#canvas.setAttribute("aria-label", WORDS[this.holder]);
  }
}
