// Sends what waits in the outbox until each write is settled: what the server could not do now is sent again under the
// same id, what it did becomes the confirmed state, and what it refused is taken back.
import { backoff } from "./backoff.js";
import type { Connection } from "./connection.js";
import { type Change, type Emit, Refused } from "./events.js";
import { type Kept, type Outbox, WAITING_MAX, type Waiting } from "./outbox.js";
import type { Ack, Failure, Session, Written } from "./protocol.js";
import type { Records } from "./records.js";
import type { SessionState } from "./state.js";
import { storageFailure } from "./storage.js";

/** What the sender needs of the client. */
interface Client {
  deviceId(): string | undefined;
  changed(key: string, from: Change["from"]): void;
  emit: Emit;
}

export class Sender {
  #isRestored = false;
  #retryAt = 0;
  #retries = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #onSettled: (() => void)[] = [];
  /** Writes on their way to the storage. */
  readonly #storing = new Set<Promise<void>>();

  constructor(
    private readonly connection: Connection,
    private readonly outbox: Outbox,
    private readonly state: SessionState,
    private readonly records: Records,
    private readonly client: Client,
  ) {
    connection.socket.on("disconnect", () => {
      this.#isRestored = false;
      for (const waiting of outbox.waiting) waiting.inFlight = false;
    });
  }

  /** Keeps a write until it is settled; throws `Refused`. */
  keep<Answer>(event: Kept["event"], payload: Record<string, unknown>, id = randomId()): Promise<Answer> {
    // What is sent is what was meant now, whatever the caller does to its objects later.
    const kept: Kept = { id, event, payload: structuredClone(payload) };
    const key = typeof payload.sessionKey === "string" ? payload.sessionKey : undefined;
    return new Promise<Answer>((resolve, reject) => {
      const refuse = (error: Failure) => {
        reject(new Refused(error));
        this.client.emit("refused", { event, payload: kept.payload, error });
      };
      if (this.connection.status === "closed") {
        return refuse({ code: "closed", message: "The client is closed.", retryable: false });
      }
      if (this.outbox.waiting.length >= WAITING_MAX) {
        return refuse({ code: "outbox_full", message: "Too much waits to be sent.", retryable: true });
      }
      const stored = this.outbox.add(kept, (outcome) =>
        outcome.ok ? resolve(outcome.ack as Answer) : reject(new Refused(outcome.error)),
      );
      this.#storing.add(stored);
      if (key !== undefined) this.client.changed(key, "local");
      this.tellOutbox();
      // Sent when it is kept: an answer to what a crash then forgets would be nobody's.
      stored.then(
        () => {
          this.#storing.delete(stored);
          this.tellOutbox();
          this.send();
        },
        (thrown: unknown) => {
          this.#storing.delete(stored);
          refuse(storageFailure(thrown));
          if (key !== undefined) this.client.changed(key, "refusal");
          this.tellOutbox();
          this.tellSettled();
        },
      );
    });
  }

  /** Writes that are not in the storage yet. */
  get unstored(): number {
    return this.#storing.size;
  }

  /** Every write so far is in the storage, or refused. */
  async stored(): Promise<void> {
    await Promise.allSettled(this.#storing);
  }

  /** What waits is more or less than it was, or kept by now. */
  tellOutbox(): void {
    this.client.emit("outbox", { waiting: this.outbox.waiting.length, unstored: this.unstored });
  }

  /** A new connection has restored the session; from now on `send` sends. */
  restored(): void {
    this.#isRestored = true;
    this.#retryAt = 0;
  }

  send(): void {
    if (!this.#isRestored || this.connection.status !== "online") return;
    const wait = this.#retryAt - Date.now();
    if (wait > 0) return this.#sendIn(wait);
    for (const waiting of this.outbox.next()) {
      waiting.inFlight = true;
      const name = waiting.event === "device-message" ? "messageId" : "opId";
      void this.connection
        .ask(waiting.event, { ...waiting.payload, [name]: waiting.id })
        .then((ack) => this.#answered(waiting, ack));
    }
  }

  /** The next write is settled. */
  nextSettled(): Promise<void> {
    return new Promise((resolve) => {
      this.#onSettled.push(resolve);
    });
  }

  tellSettled(): void {
    for (const resolve of this.#onSettled.splice(0)) resolve();
  }

  stop(): void {
    clearTimeout(this.#timer);
  }

  #sendIn(ms: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.send(), ms);
  }

  #answered(waiting: Waiting, ack: Ack<Record<string, unknown>>): void {
    if (!this.outbox.waiting.includes(waiting) || !waiting.inFlight) return;
    waiting.inFlight = false;
    if (!ack.ok && ack.error.retryable) {
      this.#retries += 1;
      const wait = ack.error.retryAfterMs ?? backoff(this.#retries);
      this.#retryAt = Date.now() + wait;
      return this.#sendIn(wait);
    }
    this.#retries = 0;
    const key = waiting.payload.sessionKey as string | undefined;
    if (ack.ok) {
      if (key !== undefined) this.#applied(waiting, key, ack as unknown as Written);
      this.outbox.remove(waiting);
      waiting.settle({ ok: true, ack });
    } else {
      this.outbox.remove(waiting);
      const { code, version, state, deleted } = ack.error;
      if (code === "conflict" && key !== undefined && version !== undefined) {
        // What won, without the seq that would let it take the place of something newer.
        const known = this.state.confirmed(key);
        if (!known || known.version < version) {
          const seq = known?.seq ?? 0;
          this.state.take(key, { state: state ?? null, version, seq, ...(deleted ? { deleted } : {}) });
        }
      }
      waiting.settle({ ok: false, error: ack.error });
      this.client.emit("refused", { event: waiting.event, payload: waiting.payload, error: ack.error });
    }
    if (key !== undefined) this.client.changed(key, ack.ok ? "answer" : "refusal");
    this.records.keepSessionSoon();
    this.tellOutbox();
    this.tellSettled();
    this.send();
  }

  #applied(waiting: Waiting, key: string, written: Written): void {
    const { version, seq } = written;
    const entry = { version, seq, deviceId: this.client.deviceId() ?? null };
    this.state.answered(seq);
    if (waiting.event === "session-delete") this.state.take(key, { ...entry, state: null, deleted: true });
    else if ("state" in written) this.state.take(key, { ...entry, state: written.state });
    else if ("state" in waiting.payload) this.state.take(key, { ...entry, state: waiting.payload.state });
    // What a repeated patch or list of operations came to is not in its answer.
    else void this.#reload(key);
  }

  async #reload(key: string): Promise<void> {
    const ack = await this.connection.ask("session-get", { keys: [key] });
    if (!ack.ok) return;
    this.state.restore(ack as unknown as Session, false);
    this.client.changed(key, "answer");
  }
}

function randomId(): string {
  // `randomUUID` is missing where a page comes over plain http.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
