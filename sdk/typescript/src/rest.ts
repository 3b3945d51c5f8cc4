// REST in the name of a user: with the token of the connection, and once more with another one where that has expired.
import { Refused } from "./events.js";
import type { Failure } from "./protocol.js";
import type { Token } from "./token.js";

export interface Call {
  method: string;
  path: string;
  body?: unknown;
  headers: Record<string, string>;
}

/** Throws `Refused`, and what `fetch` and the token's source throw. */
export async function request(url: string, token: Token, { method, path, body, headers }: Call): Promise<unknown> {
  const send = async (expired: boolean) =>
    fetch(new URL(path, url), {
      method,
      headers: {
        authorization: `Bearer ${await token.fetch(expired)}`,
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
  let answer = await send(false);
  if (answer.status === 401 && token.isRenewable) answer = await send(true);
  if (answer.status === 204) return undefined;
  const said = (await answer.json()) as { error?: Failure };
  if (!answer.ok) throw new Refused(said.error ?? { code: "internal", message: answer.statusText, retryable: true });
  return said;
}
