/** The HTTP API, as this page needs it. Knows nothing of the page. */

import { readEvents } from "./sse.js";

/** The server refused, failed, or could not be reached; the message is for people. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, retryAfterS = null } = {}) {
    super(message);
    this.status = status; // 0: there was no HTTP answer, or it had already begun
    this.code = code;
    this.retryAfterS = retryAfterS;
  }

  /** Whether the same request will be served in a while. */
  get isLoading() {
    return this.status === 503 && this.code === "model_loading";
  }
}

export class Api {
  /**
   * @param {string} base where the page lies; the API is beside it, also behind a path prefix.
   * @param {{value: string | null}} key
   */
  constructor(base, key) {
    this.base = base;
    this.key = key;
  }

  /** The first model's card. */
  async model(signal) {
    const response = await this.#fetch("v1/models", { signal });
    const { data } = await response.json();
    return data[0];
  }

  /** What early exits bring by the server's own measure, in all its recent steps; null if unknown. */
  async speedUp() {
    try {
      const text = await (await this.#fetch("metrics", {})).text();
      const sample = /^adadecode:speedup(?:\{.*\})? (\S+)$/m.exec(text);
      return sample ? Number(sample[1]) : null;
    } catch {
      return null; // a figure is not worth an error
    }
  }

  /**
   * Stream one answer.
   * @returns {AsyncGenerator<object>} its chunks.
   * @throws {ApiError} also for an error in mid-answer.
   */
  async *chat(body, signal) {
    const response = await this.#fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
    try {
      for await (const data of readEvents(response.body)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(chunk.error.message, { code: chunk.error.code });
        yield chunk;
      }
    } catch (error) {
      if (error instanceof ApiError || signal.aborted) throw error;
      throw new ApiError("The connection broke off in mid-answer.");
    }
    throw new ApiError("The connection ended before the answer was complete.");
  }

  async #fetch(path, options) {
    const headers = { ...options.headers };
    if (this.key.value) headers.Authorization = `Bearer ${this.key.value}`;
    let response;
    try {
      response = await fetch(new URL(path, this.base), { ...options, headers });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new ApiError("The server cannot be reached.");
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }
}

async function refusal(response) {
  const retryAfterS = Number(response.headers.get("Retry-After")) || null;
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // not from our server, but from something before it
  }
  const message = error.message ?? `The server answered ${response.status}.`;
  return new ApiError(message, { status: response.status, code: error.code, retryAfterS });
}
