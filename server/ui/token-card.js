/** A card beside a token that says where it left: for the mouse, for touch and for arrow keys. */

import { describeToken } from "./words.js";

const STEPS = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };

export class TokenCard {
  #card = document.getElementById("token-card");
  #paneOf; // answer element → its pane
  #current = null;

  /** @param {(element: Element) => import("./pane.js").Pane | undefined} paneOf */
  constructor(conversation, paneOf) {
    this.#paneOf = paneOf;
    conversation.addEventListener("pointerover", (event) => this.#point(event));
    conversation.addEventListener("pointerdown", (event) => this.#point(event));
    conversation.addEventListener("keydown", (event) => this.#walk(event));
    conversation.addEventListener("focusout", () => this.hide());
    conversation.addEventListener("scroll", () => this.#place(), { passive: true });
  }

  get isShown() {
    return !this.#card.hidden;
  }

  hide() {
    this.#current?.classList.remove("current");
    this.#current = null;
    this.#card.hidden = true;
  }

  #point(event) {
    const span = event.target.closest?.(".answer .token");
    if (span) this.#show(span);
    else if (!document.activeElement?.classList.contains("answer")) this.hide();
  }

  #walk(event) {
    const answer = event.target;
    if (!(event.key in STEPS) || !answer.classList?.contains("answer")) return;
    const spans = [...answer.querySelectorAll(".token")];
    if (!spans.length) return;
    event.preventDefault();
    const at = spans.indexOf(this.#current);
    const next = at < 0 && event.key === "ArrowLeft" ? spans.length - 1 : at + STEPS[event.key];
    const span = spans[Math.max(0, Math.min(spans.length - 1, next))];
    this.#show(span);
    span.scrollIntoView({ block: "nearest" });
    this.#place();
  }

  #show(span) {
    const pane = this.#paneOf(span);
    const tokens = pane?.tokensOf.get(span) ?? [];
    if (!tokens.length) return;
    this.#current?.classList.remove("current");
    this.#current = span;
    span.classList.add("current");
    this.#card.replaceChildren(...tokens.map((token) => {
      const line = document.createElement("p");
      line.textContent = describeToken(token, pane.layers.numLayers);
      return line;
    }));
    this.#card.hidden = false;
    this.#place();
  }

  /** Below the token, or above it where there is no room. */
  #place() {
    if (!this.#current) return;
    const token = this.#current.getClientRects()[0] ?? this.#current.getBoundingClientRect();
    const card = this.#card.getBoundingClientRect();
    const left = Math.max(8, Math.min(token.left, innerWidth - card.width - 8));
    const below = token.bottom + 6;
    const top = below + card.height < innerHeight ? below : token.top - card.height - 6;
    this.#card.style.left = `${left}px`;
    this.#card.style.top = `${Math.max(8, top)}px`;
  }
}
