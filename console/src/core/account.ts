// Who is logged in, and REST calls on their behalf. Tokens are kept in localStorage, so that tabs
// share one login; an expired one is refreshed once for all tabs, before or between calls.
import { signal } from "@preact/signals";
import { type Failure, Refused, unreachable } from "./failure";

export interface Login {
  token: string;
  refreshToken: string;
  expiresAt: string;
  user: { id: string; email: string; createdAt: string };
}

const KEPT = "tandem.login";

function kept(): Login | undefined {
  try {
    const login = JSON.parse(localStorage.getItem(KEPT) ?? "null") as Login | null;
    return login?.token && login.user?.id ? login : undefined;
  } catch {
    return undefined;
  }
}

/** The login of this browser. */
export const login = signal<Login | undefined>(kept());

/** Why the login ended, if it did not end by the person's own wish. */
export const farewell = signal<string | undefined>(undefined);

function keep(next: Login | undefined): void {
  if (next) localStorage.setItem(KEPT, JSON.stringify(next));
  else localStorage.removeItem(KEPT);
  login.value = next;
}

// Another tab logged in, out, or refreshed.
addEventListener("storage", (event) => {
  if (event.key === KEPT || event.key === null) login.value = kept();
});

/** Forgets the login in this browser. */
export function forget(why?: string): void {
  farewell.value = why;
  keep(undefined);
}

export interface Answer<T> {
  status: number;
  etag: string | null;
  body: T;
}

interface Call {
  body?: unknown;
  headers?: Record<string, string>;
}

async function send<T>(method: string, path: string, token: string | undefined, call: Call): Promise<Answer<T>> {
  const headers: Record<string, string> = { ...call.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  if (call.body !== undefined) headers["Content-Type"] = "application/json";
  let response: Response;
  let text: string;
  try {
    const body = call.body === undefined ? null : JSON.stringify(call.body);
    response = await fetch(path, { method, headers, body, signal: AbortSignal.timeout(15_000) });
    text = await response.text();
  } catch {
    throw new Refused(unreachable);
  }
  let body: unknown;
  try {
    body = text === "" ? undefined : JSON.parse(text);
  } catch {
    throw new Refused({ code: "unexpected", message: `The server answered ${response.status} without JSON.` });
  }
  if (!response.ok) {
    const error = (body as { error?: Failure } | undefined)?.error;
    throw new Refused(error ?? { code: "unexpected", message: `The server answered ${response.status}.` });
  }
  return { status: response.status, etag: response.headers.get("ETag"), body: body as T };
}

/** A call without a login. */
export const open = <T>(method: string, path: string, body?: unknown) => send<T>(method, path, undefined, { body });

/** A call for the person who is logged in. */
export async function call<T>(method: string, path: string, options: Call = {}): Promise<Answer<T>> {
  const token = await freshToken();
  try {
    return await send<T>(method, path, token, options);
  } catch (thrown) {
    if (!(thrown instanceof Refused)) throw thrown;
    const { code } = thrown.failure;
    if (code === "token_expired") return send<T>(method, path, await refreshed(token), options);
    if (code === "unauthorized") forget("Your login was ended. Log in again.");
    throw thrown;
  }
}

/** A token that is good for a minute at least, if one can be had. */
export async function freshToken(): Promise<string> {
  const current = login.value;
  if (!current) throw new Refused({ code: "unauthorized", message: "Nobody is logged in." });
  if (Date.parse(current.expiresAt) - Date.now() > 60_000) return current.token;
  return refreshed(current.token);
}

/** Refreshes `old` unless another tab did. */
export async function refreshed(old: string): Promise<string> {
  // Locks exist in secure contexts only; the server forgives a doubled refresh for 20 s.
  const exclusively = <T>(work: () => Promise<T>): Promise<T> =>
    navigator.locks ? (navigator.locks.request("tandem.refresh", work) as Promise<T>) : work();
  return exclusively(async () => {
    const current = kept();
    if (!current) throw new Refused({ code: "unauthorized", message: "Nobody is logged in." });
    if (current.token !== old) {
      login.value = current;
      return current.token;
    }
    try {
      const { body } = await open<Login>("POST", "/api/auth/refresh", { refreshToken: current.refreshToken });
      keep({ ...current, ...body });
      return body.token;
    } catch (thrown) {
      if (thrown instanceof Refused && thrown.failure.code === "invalid_token") {
        forget("Your login has ended. Log in again.");
      }
      throw thrown;
    }
  });
}

/** Makes an account, or logs in to one. */
export async function enter(way: "register" | "login", email: string, password: string): Promise<void> {
  const { body } = await open<Login>("POST", `/api/auth/${way}`, { email, password });
  farewell.value = undefined;
  keep(body);
}

/** Ends this login, or all of the person's. */
export async function leave(everywhere: boolean): Promise<void> {
  await call("POST", everywhere ? "/api/auth/logout-all" : "/api/auth/logout");
  forget();
}
