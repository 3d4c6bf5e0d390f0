// What the drawings over time share: the last half minute, now at the right edge.

export const SHOWN_MS = 30000;

export class Timeline {
  constructor(canvas) {
    this.canvas = canvas;
    this.paint = canvas.getContext("2d");
    this.colours = {};
    new ResizeObserver(() => this.#fit()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.refresh());
    this.#fit();
    this.refresh();
  }

  /** Reads the colours again, after the appearance has changed. */
  refresh() {
    const style = getComputedStyle(this.canvas);
    for (const name of ["you", "it", "line", "soft"]) {
      this.colours[name] = style.getPropertyValue(`--${name}`);
    }
  }

  /** Where a time is, in CSS pixels from the left. */
  x(time, now) {
    return this.width * (1 - (now - time) / SHOWN_MS);
  }

  clear() {
    this.paint.clearRect(0, 0, this.width, this.height);
    this.paint.globalAlpha = 1;
  }

  #fit() {
    const scale = devicePixelRatio || 1;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = Math.round(this.width * scale);
    this.canvas.height = Math.round(this.height * scale);
    this.paint.scale(scale, scale);
  }
}
