// The shared note of one demo device: its draft, its caret, and the carets of others.
import { type Signal, signal } from "@preact/signals";
import {
  confirmed,
  decided,
  type Draft,
  draftOf,
  notApplied,
  received,
  sending,
  toSend,
  typed,
} from "../core/draft";
import type { Entry, Link } from "../core/link";
import type { Choice } from "../core/merge";

export const NOTE = "demo-note";

export const FIRST_TEXT = `Weekend in Lisbon
Train leaves at 9:15, platform 4
Pack: charger, rain jacket
Dinner on Saturday: book a table
`;

/** How long typing rests before it is written; a burst of keys is one write. */
const REST_MS = 150;
/** A caret that did not move for this long is no longer shown. */
const CARET_MS = 20_000;

const textOf = (state: unknown): string => {
  const text = (state as { text?: unknown } | null)?.text;
  return typeof text === "string" ? text : "";
};

export class Note {
  readonly draft: Signal<Draft> = signal(draftOf({ text: "", version: 0 }));
  /** The other's caret, and where it is. */
  readonly caret: Signal<{ at: number; end: number } | undefined> = signal(undefined);
  /** Who wrote what a conflict is with. */
  readonly rival: Signal<string | null | undefined> = signal(undefined);
  readonly merges: Signal<number> = signal(0);
  onArrived: () => void = () => {};
  onDecided: () => void = () => {};

  private rest: ReturnType<typeof setTimeout> | undefined;
  private fade: ReturnType<typeof setTimeout> | undefined;
  /** What came while a write was on its way; its answer comes first. */
  private held: { entry: Entry; deleted: boolean; anew: boolean } | undefined;

  constructor(private readonly link: Link) {}

  type(text: string): void {
    this.draft.value = typed(this.draft.value, text);
    clearTimeout(this.rest);
    this.rest = setTimeout(() => void this.flush(), REST_MS);
  }

  /** Tells the others where the caret is. */
  point(at: number, end: number): void {
    this.link.realtime("caret", { at, end }, "caret");
  }

  pointed(payload: unknown): void {
    const { at, end } = payload as { at?: unknown; end?: unknown };
    if (typeof at !== "number" || typeof end !== "number") return;
    this.caret.value = { at, end };
    clearTimeout(this.fade);
    this.fade = setTimeout(() => this.forgetCaret(), CARET_MS);
  }

  forgetCaret(): void {
    this.caret.value = undefined;
  }

  changed(entry: Entry, deleted: boolean, anew = false): void {
    if (this.draft.value.sent !== undefined) {
      this.held = { entry, deleted, anew };
      return;
    }
    const theirs = { text: deleted ? "" : textOf(entry.state), version: deleted ? 0 : entry.version };
    const { draft, merged } = received(this.draft.value, theirs, anew || deleted);
    if (draft === this.draft.value) return;
    this.draft.value = draft;
    if (merged) this.merges.value += 1;
    if (draft.conflict) this.rival.value = entry.deviceId;
    this.onArrived();
    void this.flush();
  }

  decide(choices: readonly Choice[]): void {
    this.draft.value = decided(this.draft.value, choices);
    this.onDecided();
    void this.flush();
  }

  /** Writes what is typed and not written yet, on the version it was typed on. */
  async flush(): Promise<void> {
    if (this.link.status.value !== "online") return;
    const write = toSend(this.draft.value);
    if (!write) return;
    this.draft.value = sending(this.draft.value, write.text);
    const ack = await this.link.ask("session-update", {
      sessionKey: NOTE,
      state: { text: write.text },
      baseVersion: write.baseVersion,
      onConflict: "reject",
    });
    const { held } = this;
    this.held = undefined;
    if (ack.ok) {
      this.draft.value = confirmed(this.draft.value, ack.version as number);
    } else {
      this.draft.value = notApplied(this.draft.value);
      if (ack.error.code === "conflict") {
        const { state, version, deviceId, deleted } = ack.error as unknown as Entry & { deleted?: boolean };
        this.changed({ state, version, seq: 0, ...(deviceId !== undefined ? { deviceId } : {}) }, deleted === true);
      } else if (ack.error.retryable) {
        clearTimeout(this.rest);
        this.rest = setTimeout(() => void this.flush(), ack.error.retryAfterMs ?? 1000);
      }
    }
    if (held) this.changed(held.entry, held.deleted, held.anew);
    if (ack.ok) void this.flush();
  }
}
