// What a tab keeps in the storage, under the slot that it holds: its device id, the session as it last knew it, its
// outbox, and what else it wants to know after a reload. A tab that loses its slot takes another one, and its outbox
// along. What tabs that are gone left in their outboxes it takes over.
import type { Emit } from "./events.js";
import { Outbox } from "./outbox.js";
import { SLOTS_MAX, type Slot, takeSlot, trySlot } from "./slots.js";
import type { SessionState, Snapshot } from "./state.js";
import { MemoryStorage, type Storage, storageFailure } from "./storage.js";

/** How often it is looked for what tabs that are gone left unsent. */
const ADOPT_MS = 30_000;
/** How soon what is known is kept after it changed. */
const KEEP_AFTER_MS = 250;

export class Records {
  /** Whose records these are, on which server; known before a slot is taken. */
  scope = "";
  #slot: Slot | undefined;
  #keeping: ReturnType<typeof setTimeout> | undefined;
  #adopting: (ReturnType<typeof setInterval> & { unref?(): void }) | undefined;
  #isStopped = false;

  constructor(
    private readonly storage: Storage,
    private readonly state: SessionState,
    private readonly outbox: Outbox,
    private readonly emit: Emit,
  ) {}

  /** `lost` is called if another tab takes the slot all the same; what it throws is told. */
  async takeSlot(lost: () => Promise<void>): Promise<void> {
    this.#slot = await takeSlot(this.storage, this.scope, () => this.#quietly(lost()));
  }

  /** False: the slot is lost, and the client on its way to another. A storage that does not say is no reason to move. */
  async isHeld(): Promise<boolean> {
    return (await this.#slot?.isHeld().catch(() => true)) ?? true;
  }

  /** Loads the session and the outbox. */
  async load(): Promise<void> {
    const snapshot = (await this.get("session")) as Snapshot | undefined;
    if (snapshot) this.state.load(snapshot);
    await this.outbox.open(this.#at("outbox/"));
    await this.#adopt();
  }

  /** Keeps the outbox where the slot is now. */
  async moveOutbox(): Promise<void> {
    await this.outbox.move(this.#at("outbox/"));
  }

  get(name: string): Promise<unknown> {
    return this.storage.get(this.#at(name));
  }

  /** Nobody waits for it; undefined: the record goes. */
  keep(name: string, value: unknown): void {
    const at = this.#at(name);
    this.#quietly(value === undefined ? this.storage.delete(at) : this.storage.set(at, value));
  }

  keepSessionSoon(): void {
    if (this.storage instanceof MemoryStorage && !this.#slot) return;
    this.#keeping ??= setTimeout(() => this.#quietly(this.keepSession()), KEEP_AFTER_MS);
  }

  async keepSession(): Promise<void> {
    this.#keeping = undefined;
    const snapshot = this.state.snapshot();
    if (snapshot && this.#slot) await this.storage.set(this.#at("session"), snapshot);
  }

  /** Takes over, now and then, what tabs that are gone left behind; `adopted` is called each time. */
  startAdopting(adopted: () => void): void {
    if (this.storage instanceof MemoryStorage || this.#isStopped) return;
    this.#adopting = setInterval(() => this.#quietly(this.#adopt().then(adopted)), ADOPT_MS);
    this.#adopting.unref?.(); // It keeps no process of Node's alive.
  }

  /** Nothing is kept or adopted by itself any more. */
  stop(): void {
    this.#isStopped = true;
    clearTimeout(this.#keeping);
    clearInterval(this.#adopting);
  }

  /** Gives the slot to who comes next, when all that is to be kept is. */
  async release(): Promise<void> {
    await this.keepSession();
    await this.outbox.stored();
    this.#slot?.release();
  }

  async #adopt(): Promise<void> {
    for (let number = 0; number < SLOTS_MAX && !this.#isStopped; number += 1) {
      const prefix = `${this.scope}${number}/outbox/`;
      if (number === this.#slot?.number || (await this.storage.entries(prefix)).length === 0) continue;
      const slot = await trySlot(this.storage, this.scope, number);
      if (!slot) continue;
      const other = new Outbox(this.storage);
      await other.open(prefix);
      for (const waiting of [...other.waiting]) {
        // Kept here before it is removed there: an id that is sent twice is applied once.
        await this.outbox.add({ id: waiting.id, event: waiting.event, payload: waiting.payload }, () => {});
        other.remove(waiting);
      }
      await other.stored();
      slot.release();
    }
  }

  #at(name: string): string {
    return `${this.scope}${this.#slot?.number}/${name}`;
  }

  /** Work that nobody waits for. */
  #quietly(work: Promise<unknown>): void {
    work.catch((thrown: unknown) => this.emit("error", storageFailure(thrown)));
  }
}
