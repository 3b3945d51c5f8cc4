// What went wrong, and how to say it. Codes are the server's (docs/PROTOCOL.md, Codes); people get a
// sentence that says what they can do.

export interface Failure {
  code: string;
  message: string;
  retryable?: boolean;
  retryAfterMs?: number;
  [detail: string]: unknown;
}

/** A failure as something to throw. */
export class Refused extends Error {
  constructor(readonly failure: Failure) {
    super(failure.message);
  }
}

/** The server did not answer at all. */
export const unreachable: Failure = {
  code: "unreachable",
  message: "The server does not answer. Check the connection and try again.",
  retryable: true,
};

const words: Record<string, string> = {
  invalid_credentials: "That e-mail address and password do not belong together.",
  email_taken: "There is an account with this address already. Log in instead.",
  weak_password: "Choose a password of at least 8 characters that is not easily guessed.",
  password_too_long: "That password is too long: 72 bytes is the most.",
  invalid_email: "That does not look like an e-mail address.",
  registration_closed: "This server takes no new accounts by itself. Ask whoever runs it for one.",
  unauthorized: "You are logged out here. Log in again.",
  invalid_token: "You are logged out here. Log in again.",
  token_expired: "Your login has ended. Log in again.",
  device_revoked: "This device was removed from the account.",
  replaced: "This device was opened in another tab or window, which has it now.",
  unknown_device: "That device is no longer there.",
  unknown_key: "That key is no longer there.",
  conflict: "Somebody changed it in the meantime.",
  too_large: "That is bigger than the server takes.",
  quota_exceeded: "There is no room left in this account.",
  store_unavailable: "The server cannot reach its database right now. It will be back.",
  store_busy: "The server has a lot to do right now. Try again in a moment.",
  store_full: "The server's disk is full. Whoever runs it has to make room.",
  draining: "This server is restarting. Try again in a moment.",
  too_many_connections: "Too many devices are connected at once.",
};

/** A failure in plain words. */
export function inWords(failure: Failure): string {
  if (failure.code === "rate_limited") {
    const seconds = Math.ceil((failure.retryAfterMs ?? 1000) / 1000);
    return `Too many tries. Wait ${seconds === 1 ? "a second" : `${seconds} seconds`} and try again.`;
  }
  return words[failure.code] ?? failure.message;
}

/** What was thrown, as a failure. */
export function failureOf(thrown: unknown): Failure {
  if (thrown instanceof Refused) return thrown.failure;
  return { code: "unexpected", message: thrown instanceof Error ? thrown.message : String(thrown) };
}
