// The full-duplex predictor's two probabilities over time.

import { SHOWN_MS, Timeline } from "./timeline.js";

export class Curves {
  #timeline;
  #points = []; // {time, it, you}
  #figure;
  #outputs;

  /** Args: the figure, which is hidden until there is something to draw, and its two outputs. */
  constructor(figure, assistantTurn, userTurn) {
    this.#figure = figure;
    this.#outputs = { it: assistantTurn, you: userTurn };
    this.#timeline = new Timeline(figure.querySelector("canvas"));
  }

  add(time, assistantTurn, userTurn) {
    this.#figure.hidden = false;
    this.#points.push({ time, it: assistantTurn, you: userTurn });
    while (this.#points[0].time < time - SHOWN_MS) this.#points.shift();
    for (const [who, output] of Object.entries(this.#outputs)) {
      output.value = this.#points.at(-1)[who].toFixed(2);
    }
  }

  draw(now) {
    if (this.#figure.hidden) return;
    const { paint, colours, width, height } = this.#timeline;
    this.#timeline.clear();
    const y = (probability) => 2 + (height - 4) * (1 - probability);
    paint.lineWidth = 1;
    paint.strokeStyle = colours.line;
    for (const probability of [0, 0.5, 1]) {
      paint.beginPath();
      paint.moveTo(0, y(probability));
      paint.lineTo(width, y(probability));
      paint.stroke();
    }
    paint.lineWidth = 2;
    for (const who of ["it", "you"]) {
      paint.strokeStyle = colours[who];
      // Told apart without colours too.
      paint.setLineDash(who === "you" ? [5, 3] : []);
      paint.beginPath();
      for (const point of this.#points) paint.lineTo(this.#timeline.x(point.time, now), y(point[who]));
      paint.stroke();
    }
    paint.setLineDash([]);
  }

  refresh() {
    this.#timeline.refresh();
  }
}
