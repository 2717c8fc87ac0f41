/** A question and its answer, or its two answers side by side. */

import { compare } from "./figures.js";
import { Pane } from "./pane.js";
import { count, formatTimes } from "./words.js";

export class Turn {
  panes = [];

  constructor(question, onRetry) {
    const template = document.getElementById("turn-template");
    this.question = question;
    this.element = template.content.firstElementChild.cloneNode(true);
    this.#part(".question p").textContent = question;
    this.#part(".retry").addEventListener("click", () => onRetry(this));
  }

  /** What the conversation goes on from; null when there is no answer. */
  get answer() {
    return this.panes.find((pane) => pane.text)?.text ?? null;
  }

  /** Throw earlier answers away and make room for new ones. */
  begin(runs, layers) {
    this.panes = runs.map((run) => new Pane({ ...run, layers, isShared: runs.length > 1 }));
    const parent = this.#part(".panes");
    parent.replaceChildren(...this.panes.map((pane) => pane.element));
    parent.classList.toggle("is-shared", runs.length > 1);
    this.element.classList.toggle("is-shared", runs.length > 1);
    this.#part(".verdict").hidden = true;
    this.#part(".actions").hidden = true;
  }

  /** Nothing more will come: judge, and offer another try. */
  end() {
    this.#part(".actions").hidden = false;
    if (this.panes.length === 2 && this.panes.every((pane) => pane.isComplete)) this.#judge();
  }

  /** How much faster the first answer came than the second, as far as that can be said. */
  get speedUp() {
    const [early, plain] = this.panes.map((pane) => pane.figures.speed);
    return early && plain ? early / plain : null;
  }

  #judge() {
    const { isSame, numTokens, differsAt } = compare(...this.panes);
    const verdict = this.#part(".verdict");
    const speedUp = this.speedUp;
    const pace = speedUp === null ? "" : `; early exits ${formatTimes(speedUp)} as fast`;
    verdict.textContent = isSame
      ? `✓ Identical, token for token: ${count(numTokens, "token")}${pace}`
      : `✗ Different from token ${differsAt} on`;
    verdict.dataset.isSame = isSame;
    verdict.hidden = false;
  }

  #part(selector) {
    return this.element.querySelector(selector);
  }
}
