// Messages to this device until they are heard. One is confirmed to the server when a handler got through with it, and
// comes again until then; while nobody listens it is held.
import type { TandemSocket } from "./connection.js";
import type { Emit } from "./events.js";
import type { DeviceMessage } from "./protocol.js";
import type { Records } from "./records.js";

/** Message ids that are remembered, so that none is shown twice. */
const SEEN_MAX = 1_000;

export class Inbox {
  /** Ids of messages that were heard. */
  #seen: string[] = [];
  /** Messages that no handler got through with yet, and whether one is at it. */
  readonly #unheard = new Map<string, { message: DeviceMessage; isTold: boolean }>();

  constructor(
    private readonly socket: TandemSocket,
    private readonly records: Records,
    /** Calls all handlers, and says what came of each. */
    private readonly hear: (message: DeviceMessage) => Promise<PromiseSettledResult<unknown>[]>,
    private readonly emit: Emit,
  ) {
    socket.on("device-message", (message) => this.#take(message));
  }

  /** What this tab, or the one before it in its slot, has heard. */
  async load(): Promise<void> {
    this.#seen = ((await this.records.get("seen")) as string[] | undefined) ?? [];
  }

  /** Somebody listens: what is held can be heard. */
  tellHeld(): void {
    for (const id of this.#unheard.keys()) this.#tellSoon(id);
  }

  #take(message: DeviceMessage): void {
    const id = message.messageId;
    // One that was not confirmed comes again, also when its confirmation was lost.
    if (this.#seen.includes(id)) return this.#confirm(id);
    if (this.#unheard.has(id)) return;
    this.#unheard.set(id, { message, isTold: false });
    this.#tellSoon(id);
  }

  /** Handlers of `socket` come behind ours. */
  #tellSoon(id: string): void {
    queueMicrotask(() => void this.#tell(id));
  }

  async #tell(id: string): Promise<void> {
    const unheard = this.#unheard.get(id);
    if (!unheard || unheard.isTold) return;
    unheard.isTold = true;
    const outcomes = await this.hear(unheard.message);
    const isHeard =
      outcomes.some(({ status }) => status === "fulfilled") || this.socket.listeners("device-message").length > 1;
    for (const outcome of outcomes) {
      if (outcome.status === "fulfilled") continue;
      this.emit("error", { code: "handler", message: String(outcome.reason), retryable: true });
    }
    if (!isHeard && outcomes.length === 0) {
      unheard.isTold = false;
      return;
    }
    this.#unheard.delete(id);
    if (isHeard) this.#confirm(id);
  }

  #confirm(messageId: string): void {
    this.socket.emit("device-message-ack", { messageId });
    if (this.#seen.includes(messageId)) return;
    this.#seen = [...this.#seen.slice(1 - SEEN_MAX), messageId];
    this.records.keep("seen", this.#seen);
  }
}
