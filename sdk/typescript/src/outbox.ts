// Writes that are not settled yet, in the order in which they were made. They are kept in the storage before they are
// sent, carry an id under which the server applies them once, and leave when the server has answered for good.
import type { Failure } from "./protocol.js";
import type { Storage } from "./storage.js";

export interface Kept {
  /** `opId`, or `messageId` of a message. */
  id: string;
  event: "session-update" | "session-delete" | "device-message";
  payload: Record<string, unknown>;
}

export interface Waiting extends Kept {
  /** Writes of one lane are sent one after the other. */
  lane: string;
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

  /** Keeps a write; it is on the list at once, and in the storage when the promise says so. */
  async add(kept: Kept, settle: Waiting["settle"]): Promise<void> {
    const waiting: Waiting = { ...kept, lane: laneOf(kept), place: undefined, inFlight: false, settle };
    this.waiting.push(waiting);
    await this.#opened;
    const place = String(this.#next).padStart(12, "0");
    this.#next += 1;
    await this.#store(() => this.storage.set(this.#prefix + place, kept));
    waiting.place = place;
  }

  remove(waiting: Waiting): void {
    const at = this.waiting.indexOf(waiting);
    if (at < 0) return;
    this.waiting.splice(at, 1);
    void this.#store(() => this.storage.delete(this.#prefix + waiting.place));
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

function laneOf(kept: Kept): string {
  return kept.event === "device-message" ? "messages" : `key:${String(kept.payload.sessionKey)}`;
}
