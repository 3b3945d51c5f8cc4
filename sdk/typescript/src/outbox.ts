// Writes that are not settled yet, in the order in which they were made. They are kept in the storage before they are
// sent, carry an id under which the server applies them once, and leave when the server has answered for good. One is on
// its way at a time: were the next one sent before its answer, a refusal that passes would let it overtake.
import type { Failure } from "./protocol.js";
import type { Storage } from "./storage.js";

export interface Kept {
  /** `opId`, or `messageId` of a message. */
  id: string;
  event: "session-update" | "session-delete" | "device-message";
  payload: Record<string, unknown>;
}

export interface Waiting extends Kept {
  /** What is of one lane is sent one after the other: session changes, whatever their keys, and messages. */
  lane: "session" | "messages";
  /** Where it stands in the storage; nothing while it does not yet. */
  place: string | undefined;
  inFlight: boolean;
  settle(outcome: { ok: true; ack: Record<string, unknown> } | { ok: false; error: Failure }): void;
}

/** Writes that may wait; more are refused, as a full disk would. */
export const WAITING_MAX = 10_000;

export class Outbox {
  readonly waiting: Waiting[] = [];
  #prefix = "";
  #next = 0;
  #writing: Promise<unknown> = Promise.resolve();
  #isOpen: () => void = () => {};
  readonly #opened = new Promise<void>((resolve) => {
    this.#isOpen = resolve;
  });

  constructor(private readonly storage: Storage) {}

  /** Loads what an earlier page left under `prefix`; what was added meanwhile comes after it. */
  async open(prefix: string): Promise<void> {
    this.#prefix = prefix;
    const left = (await this.storage.entries(prefix)).map(([key, value]): Waiting => {
      const kept = value as Kept;
      const place = key.slice(prefix.length);
      this.#next = Math.max(this.#next, Number(place) + 1);
      return { ...kept, lane: laneOf(kept), place, inFlight: false, settle: () => {} };
    });
    this.waiting.unshift(...left);
    this.#isOpen();
  }

  /** Keeps a write; it is on the list at once, and in the storage when the promise says so. One that cannot be kept leaves. */
  async add(kept: Kept, settle: Waiting["settle"]): Promise<void> {
    const waiting: Waiting = { ...kept, lane: laneOf(kept), place: undefined, inFlight: false, settle };
    this.waiting.push(waiting);
    await this.#opened;
    try {
      await this.#put(waiting);
    } catch (thrown) {
      this.#drop(waiting);
      throw thrown;
    }
  }

  remove(waiting: Waiting): void {
    if (!this.#drop(waiting)) return;
    // What cannot be removed is sent once more by the next page, under an id that was applied.
    this.#store(() => this.storage.delete(this.#prefix + waiting.place)).catch(() => {});
  }

  /** Keeps everything under another prefix from now on. */
  async move(prefix: string): Promise<void> {
    this.#prefix = prefix;
    for (const waiting of [...this.waiting]) await this.#put(waiting);
  }

  /** The first of each lane, if it is kept and not on its way. */
  next(): Waiting[] {
    const lanes = new Set<string>();
    return this.waiting.filter((waiting) => {
      if (lanes.has(waiting.lane)) return false;
      lanes.add(waiting.lane);
      return waiting.place !== undefined && !waiting.inFlight;
    });
  }

  async #put(waiting: Waiting): Promise<void> {
    const place = String(this.#next).padStart(12, "0");
    this.#next += 1;
    const { id, event, payload } = waiting;
    await this.#store(() => this.storage.set(this.#prefix + place, { id, event, payload } satisfies Kept));
    waiting.place = place;
  }

  /** False: it was not there. */
  #drop(waiting: Waiting): boolean {
    const at = this.waiting.indexOf(waiting);
    if (at >= 0) this.waiting.splice(at, 1);
    return at >= 0;
  }

  /** What is kept is in the storage. */
  async stored(): Promise<void> {
    await this.#writing;
  }

  /** One after the other, so that a write is never kept after it was removed. */
  #store(work: () => Promise<void>): Promise<void> {
    const done = this.#writing.then(work);
    this.#writing = done.catch(() => {});
    return done;
  }
}

function laneOf(kept: Kept): Waiting["lane"] {
  return kept.event === "device-message" ? "messages" : "session";
}
