// The wait before what the server could not do now is tried again, unless it says how long.

const RETRY_MS = 500;
const RETRY_MS_MAX = 15_000;

/** Half a second, and twice as long each time up to 15 s. */
export function backoff(tries: number): number {
  return Math.min(RETRY_MS_MAX, RETRY_MS * 2 ** Math.min(tries - 1, 6));
}
