// The token of a device: fetched from its source, which may be slow or fail, and read for the user that it names.
import { backoff } from "./backoff.js";
import type { Failure } from "./protocol.js";

/**
 * A token, or where to get one: asked at every connect, and with `expired` when the last one no longer does. One that
 * throws is asked again, less and less often; meanwhile `trouble` says so.
 */
export type TokenSource = string | ((why: { expired: boolean }) => string | Promise<string>);

/** How long the token's source may take. */
const TOKEN_MS = 30_000;

export class Token {
  /** Whether another one can be had. */
  readonly isRenewable: boolean;
  #tries = 0;

  constructor(
    private readonly source: TokenSource,
    /** Nobody wants a token after that. */
    private readonly ended: Promise<void>,
  ) {
    this.isRenewable = typeof source === "function";
  }

  /** Throws when its source does, and when the client is closed meanwhile. */
  async fetch(expired: boolean): Promise<string> {
    const source = this.source;
    if (typeof source === "string") return source;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<never>((_, reject) => {
      const fail = () => reject(new Error("no token came"));
      timer = setTimeout(fail, TOKEN_MS);
      void this.ended.then(fail);
    });
    const token = await Promise.race([Promise.resolve().then(() => source({ expired })), late]).finally(() =>
      clearTimeout(timer),
    );
    if (typeof token !== "string") throw new TypeError("what came is no token");
    this.#tries = 0;
    return token;
  }

  /** What `fetch` threw, and how long to wait before the next try. */
  failed(thrown: unknown): Failure & { retryAfterMs: number } {
    this.#tries += 1;
    const message = thrown instanceof Error ? thrown.message : String(thrown);
    return { code: "token_source", message, retryable: true, retryAfterMs: backoff(this.#tries) };
  }
}

/** The user that a token names; its signature is the server's business. */
export function userOf(token: string): string | undefined {
  try {
    const text = atob((token.split(".")[1] ?? "").replaceAll("-", "+").replaceAll("_", "/"));
    const claims = JSON.parse(text) as { userId?: unknown; sub?: unknown };
    const user = claims.userId ?? claims.sub;
    return typeof user === "string" ? user : undefined;
  } catch {
    return undefined;
  }
}
