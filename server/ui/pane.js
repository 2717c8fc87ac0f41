/** One answer on the page: its tokens as they come, then a line of figures. */

import { Alignment } from "./alignment.js";
import { Figures } from "./figures.js";
import { describeFigures } from "./words.js";

// What cannot begin a span of its own: marks that change the character before them.
const JOINS_LEFT = /^[\p{M}\p{Emoji_Modifier}\u200d\ufe0f]/u;

export class Pane {
  text = "";
  finishReason = null;
  isComplete = false;
  isRunning = false;
  #alignment = new Alignment();
  #answer;
  #isEarly;
  #thought = null; // the element of the model's reasoning, if it shows any
  #lastSpan = null;

  /**
   * @param {object} options
   * @param {string} options.label
   * @param {boolean} options.isEarly whether early exits are asked for.
   * @param {import("./layers.js").Layers} options.layers
   * @param {boolean} options.isShared another pane stands beside this one, so that the label is seen.
   */
  constructor({ label, isEarly, layers, isShared }) {
    const template = document.getElementById("pane-template");
    this.element = template.content.firstElementChild.cloneNode(true);
    this.#answer = this.#part(".answer");
    this.label = label;
    this.#isEarly = isEarly && layers.exits.length > 0;
    this.#part("h3").textContent = label;
    this.#part("h3").classList.toggle("hidden", !isShared);
    this.#answer.setAttribute("aria-label", `${label}: answer. Arrow keys go from token to token.`);
    this.layers = layers;
    this.tokensOf = new WeakMap(); // span → its tokens, for the card that describes them
    this.figures = new Figures(performance.now());
  }

  /** Begin (again), with nothing shown. */
  begin() {
    this.figures = new Figures(performance.now());
    this.#alignment = new Alignment();
    this.#thought = this.#lastSpan = this.finishReason = null;
    this.text = "";
    this.isComplete = false;
    this.isRunning = true;
    this.#answer.replaceChildren();
    this.#part(".error").hidden = true;
    this.#part(".summary").textContent = "";
    this.element.setAttribute("aria-busy", "true");
    this.element.classList.add("is-running");
  }

  /** Show a chunk of the answer. */
  add(chunk) {
    this.figures.finish(chunk.usage, chunk.metrics);
    const choice = chunk.choices[0];
    if (!choice) return;
    const trace = choice.early_exit_trace ?? [];
    this.figures.add(trace, performance.now());
    this.#alignment.add(trace);
    this.finishReason = choice.finish_reason ?? this.finishReason;
    const thought = choice.delta.reasoning_content ?? choice.delta.reasoning;
    if (thought) this.#show(this.#alignment.take(thought), this.#thoughtElement());
    const text = choice.delta.content ?? "";
    this.text += text;
    this.#show(this.#alignment.take(text), this.#answer);
  }

  /** The answer ended by itself. */
  complete() {
    this.isComplete = true;
    this.#show(this.#alignment.end(), this.#answer);
    this.#end(this.finishReason === "length" ? "cut at the longest answer" : "");
  }

  /** The answer was stopped by the reader. */
  stop() {
    this.#end("stopped");
  }

  /** Say what went wrong; what came until then stays. */
  fail(message) {
    const error = this.#part(".error");
    error.textContent = message;
    error.hidden = false;
    this.#end("");
  }

  /** Say what is being waited for. */
  wait(message) {
    this.#part(".summary").textContent = message;
  }

  #end(remark) {
    this.isRunning = false;
    this.element.setAttribute("aria-busy", "false");
    this.element.classList.remove("is-running");
    const { numDrafts, numTokens } = this.figures;
    const isPlain = this.#isEarly && numTokens && !numDrafts; // as the exit policy decides at times
    const why = this.figures.policyReason ? ` (${this.figures.policyReason})` : "";
    const remarks = [isPlain ? `no drafts were tried${why}` : "", remark];
    this.#part(".summary").textContent = describeFigures(this.figures, remarks);
  }

  #show(pieces, parent) {
    for (const piece of pieces) {
      const last = this.#lastSpan;
      if (piece.text && last?.parentNode === parent && joins(last.textContent, piece.text)) {
        last.textContent += piece.text;
        this.tokensOf.get(last).push(...piece.tokens);
        continue;
      }
      if (!piece.isContinued) parent.append(...piece.tokens.flatMap((token) => this.#drafts(token)));
      this.#lastSpan = this.#span(piece);
      parent.append(this.#lastSpan);
    }
  }

  #span({ text, tokens }) {
    const span = document.createElement("span");
    const token = tokens.at(-1); // the one that completed the text
    span.textContent = text || tokens.map((each) => each.token).join("");
    span.className = "token";
    if (!text) span.classList.add("silent");
    if (token && token.confidence !== null) span.classList.add("early", this.layers.look(token.exit_layer));
    if (token) span.dataset.layer = token.exit_layer;
    this.tokensOf.set(span, [...tokens]);
    return span;
  }

  #drafts(token) {
    return token.rejected.map((draft) => {
      const element = document.createElement("del");
      element.className = `draft ${this.layers.look(draft.exit_layer)}`;
      element.textContent = draft.token.replaceAll("\n", "⏎");
      element.dataset.layer = draft.exit_layer;
      return element;
    });
  }

  #thoughtElement() {
    if (!this.#thought) {
      this.#thought = document.createElement("div");
      this.#thought.className = "thought";
      this.#answer.append(this.#thought);
    }
    return this.#thought;
  }

  #part(selector) {
    return this.element.querySelector(selector);
  }
}

function joins(before, text) {
  return JOINS_LEFT.test(text) || before.endsWith("\u200d");
}
