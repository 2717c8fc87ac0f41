/**
 * Which token did a piece of text come from?
 *
 * Text and trace do not arrive in step: the server holds text back that may become a stop string,
 * a character may be spelled by several tokens, control tokens have no text at all, and some
 * tokenizers drop the first space. So tokens wait here until their text comes.
 */
export class Alignment {
  #decoder = new TextDecoder("utf-8", { ignoreBOM: true }); // splits characters as the server does
  #spelling = []; // tokens of a character that is not complete
  #waiting = []; // {text, tokens, isBegun}
  #isFirst = true;

  /** Take tokens of the trace. */
  add(trace) {
    for (const token of trace) {
      this.#spelling.push(token);
      const text = this.#decoder.decode(Uint8Array.from(token.bytes), { stream: true });
      if (text) this.#wait(text);
    }
  }

  /**
   * Attribute the next text.
   * @returns {{text: string, tokens: object[], isContinued: boolean}[]} without tokens where they
   *   are not known, without text for tokens that turned out to have none; `isContinued` if the
   *   tokens were in a piece before.
   */
  take(text) {
    const pieces = [];
    while (text) {
      const head = this.#waiting[0];
      const numCommon = head ? commonLength(head.text, text) : 0;
      if (numCommon && (numCommon === head.text.length || numCommon === text.length)) {
        pieces.push(this.#cut(head, numCommon));
        text = text.slice(numCommon);
      } else if (this.#isFirst && head?.text.startsWith(" ")) {
        this.#cut(head, 1);
        head.isBegun = false;
        if (!head.text) pieces.push({ text: "", tokens: head.tokens, isContinued: false });
      } else {
        const next = this.#waiting.findIndex((entry) => isPrefix(entry.text, text));
        if (next < 0) {
          pieces.push({ text, tokens: [], isContinued: false });
          break;
        }
        pieces.push(...this.#dropBefore(next));
      }
      this.#isFirst = false;
    }
    return pieces;
  }

  /** The answer is complete: tokens that never had a text. */
  end() {
    const text = this.#decoder.decode();
    if (this.#spelling.length) this.#wait(text);
    return this.#dropBefore(this.#waiting.length);
  }

  #wait(text) {
    this.#waiting.push({ text, tokens: this.#spelling, isBegun: false });
    this.#spelling = [];
  }

  #cut(head, length) {
    const piece = {
      text: head.text.slice(0, length),
      tokens: head.tokens,
      isContinued: head.isBegun,
    };
    head.text = head.text.slice(length);
    head.isBegun = true;
    if (!head.text) this.#waiting.shift();
    return piece;
  }

  #dropBefore(index) {
    const dropped = this.#waiting.splice(0, index).filter((entry) => !entry.isBegun);
    return dropped.map(({ tokens }) => ({ text: "", tokens, isContinued: false }));
  }
}

function commonLength(a, b) {
  const length = Math.min(a.length, b.length);
  let index = 0;
  while (index < length && a[index] === b[index]) index++;
  return index;
}

function isPrefix(a, b) {
  return commonLength(a, b) === Math.min(a.length, b.length);
}
