/** Trying until it works: while the model loads, and once more with a key. */

import { ApiError } from "./api.js";

const WAIT_S = 2;

/**
 * Run `attempt` until it succeeds or fails for a reason that waiting does not cure.
 * @param {object} handlers
 * @param {(error: ApiError, seconds: number) => Promise<void>} handlers.wait
 * @param {() => Promise<boolean>} handlers.askKey
 * @param {(error: ApiError) => boolean} handlers.isWorthWaiting
 */
export async function persist(attempt, { wait, askKey, isWorthWaiting }) {
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 401) {
        if (!(await askKey())) throw error;
      } else if (isWorthWaiting(error)) {
        await wait(error, error.retryAfterS ?? WAIT_S);
      } else {
        throw error;
      }
    }
  }
}

/** Resolves after some seconds; rejects when the signal is aborted meanwhile. */
export function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
