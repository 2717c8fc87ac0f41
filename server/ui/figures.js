/** One answer in numbers, while it comes and afterwards. Knows nothing of the page. */
export class Figures {
  tokenIds = [];
  numFull = 0; // ran to the last layer
  numRejected = 0;
  byLayer = new Map(); // exit layer → tokens that left there and were accepted
  metrics = null; // the server's own, with the last chunk
  #numRuns = 0; // steps that had drafts
  #runIsOpen = false;
  #startedAt;
  #firstAt = null;
  #lastAt = null;
  #numFirst = 0; // tokens that came together with the first
  #numTokens = null; // as the server counted

  /** @param {number} now milliseconds, as of `performance.now()`. */
  constructor(now) {
    this.#startedAt = now;
  }

  /** Take tokens of the trace. */
  add(trace, now) {
    if (!trace.length) return;
    for (const token of trace) this.#count(token);
    this.#lastAt = now;
    if (this.#firstAt === null) {
      this.#firstAt = now;
      this.#numFirst = trace.length;
    }
  }

  /** Take what the last chunk says. */
  finish(usage, metrics) {
    this.#numTokens = usage?.completion_tokens ?? this.#numTokens;
    this.metrics = metrics ?? this.metrics;
  }

  get numTokens() {
    return this.#numTokens ?? this.tokenIds.length;
  }

  get numEarly() {
    return this.tokenIds.length - this.numFull;
  }

  get firstTokenMs() {
    return this.#firstAt === null ? null : this.#firstAt - this.#startedAt;
  }

  /** Tokens per second after the first ones; null until that can be said. */
  get speed() {
    const seconds = (this.#lastAt - this.#firstAt) / 1000;
    const numTimed = this.tokenIds.length - this.#numFirst;
    return numTimed > 0 && seconds > 0 ? numTimed / seconds : null;
  }

  get numDrafts() {
    return this.#drafts?.num_draft_tokens ?? this.numEarly + this.numRejected;
  }

  /** Share of the drafts that were accepted; null without drafts. */
  get acceptanceRate() {
    if (!this.numDrafts) return null;
    return (this.#drafts?.num_accepted_draft_tokens ?? this.numEarly) / this.numDrafts;
  }

  /** Tokens that one run of drafts brought on average, the last layer's own among them. */
  get acceptanceLength() {
    if (!this.numDrafts) return null;
    if (this.#drafts) return this.#drafts.mean_acceptance_length;
    return this.#numRuns ? 1 + this.numEarly / this.#numRuns : null;
  }

  /** Why drafts were made at the end, or were not, in words; empty where the server does not say. */
  get policyReason() {
    return this.metrics?.early_exit?.reason?.replaceAll("_", " ") ?? "";
  }

  get #drafts() {
    return this.metrics?.speculative_decoding ?? null;
  }

  /** A run is some early tokens and the one of the last layer that follows. */
  #count(token) {
    this.tokenIds.push(token.token_id);
    this.numRejected += token.rejected.length;
    const isEarly = token.confidence !== null;
    if (!this.#runIsOpen && (isEarly || token.rejected.length)) this.#numRuns++;
    this.#runIsOpen = isEarly;
    if (isEarly) this.byLayer.set(token.exit_layer, (this.byLayer.get(token.exit_layer) ?? 0) + 1);
    else this.numFull++;
  }
}

/**
 * Whether two answers are the same, token for token.
 * @returns {{isSame: boolean, numTokens: number, differsAt: number | null}} counted from 1.
 */
export function compare(one, other) {
  const [a, b] = [one.figures.tokenIds, other.figures.tokenIds];
  const length = Math.max(a.length, b.length);
  for (let index = 0; index < length; index++) {
    if (a[index] !== b[index]) return { isSame: false, numTokens: length, differsAt: index + 1 };
  }
  const isSame = one.text === other.text && one.finishReason === other.finishReason;
  return { isSame, numTokens: length, differsAt: isSame ? null : length };
}
