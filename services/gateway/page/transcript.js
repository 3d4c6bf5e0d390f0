// The conversation in words. What was not heard is struck through.

const SPEAKERS = { user: "You", assistant: "MinMo", system: "Note", tool: "Tool" };
// Near enough to the end to go along with it.
const NEAR_END_PIXELS = 120;

export class Transcript {
  #list;
  #turns = new Map();

  constructor(list) {
    this.#list = list;
  }

  get empty() {
    return this.#list.childElementCount === 0;
  }

  text(id) {
    return this.#turns.get(id)?.text ?? "";
  }

  /** Makes a turn, if it is not there; `after` is the turn that it follows, if it is not the last. */
  add(id, role, after) {
    if (this.#turns.has(id)) return;
    const item = document.createElement("li");
    item.className = role;
    item.dataset.item = id;
    const speaker = document.createElement("span");
    speaker.className = "speaker";
    speaker.textContent = SPEAKERS[role] ?? role;
    const words = document.createElement("p");
    words.className = "words pending";
    item.append(speaker, words);
    this.#turns.set(id, { item, words, text: "" });
    const before = this.#turns.get(after)?.item.nextSibling ?? null;
    this.#changing(() => this.#list.insertBefore(item, before));
  }

  /** More words at the end. */
  append(id, words) {
    this.set(id, this.text(id) + words, false);
  }

  /** All the words; `final`: they will not change. */
  set(id, text, final) {
    const turn = this.#turns.get(id);
    if (!turn) return;
    turn.text = text;
    this.#changing(() => {
      turn.words.textContent = text;
      turn.words.classList.toggle("pending", !final);
    });
  }

  /** What was heard of a turn, and all that was to be said. */
  heard(id, heard, all) {
    const turn = this.#turns.get(id);
    if (!turn) return;
    this.set(id, heard, true);
    if (!all.startsWith(heard) || all.length === heard.length) return;
    const aside = document.createElement("span");
    aside.className = "unseen";
    aside.textContent = " (not heard:) ";
    const unheard = document.createElement("s");
    unheard.textContent = all.slice(heard.length);
    this.#changing(() => turn.words.append(aside, unheard));
  }

  /** Puts something under a turn; it replaces what was there. */
  attach(id, element) {
    const turn = this.#turns.get(id);
    if (!turn) return;
    this.#changing(() => {
      turn.item.querySelector("details")?.remove();
      turn.item.append(element);
    });
  }

  /** Turns for which `gone(id, role)` holds stay to be read, but nothing more happens to them. */
  release(gone) {
    for (const [id, { item, words }] of this.#turns) {
      if (!gone(id, item.className)) continue;
      words.classList.remove("pending");
      if (words.textContent) item.removeAttribute("data-item");
      else item.remove();
      this.#turns.delete(id);
    }
  }

  remove(id) {
    this.#turns.get(id)?.item.remove();
    this.#turns.delete(id);
  }

  clear() {
    this.#turns.clear();
    this.#list.replaceChildren();
  }

  /** Stays at the end of the page, unless the reader has gone elsewhere. */
  #changing(change) {
    const page = document.scrollingElement;
    const near = page.scrollHeight - page.scrollTop - innerHeight < NEAR_END_PIXELS;
    change();
    if (near) page.scrollTop = page.scrollHeight;
  }
}
