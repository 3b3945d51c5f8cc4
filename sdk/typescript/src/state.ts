// The session as this device knows it: of each key what has the highest seq is true (docs/PROTOCOL.md, promise 2), and
// writes that are not settled yet are laid over it.
import { applyOps, mergePatch } from "./merge.js";
import type { Waiting } from "./outbox.js";
import type { Op, Position, Session } from "./protocol.js";

export interface Entry {
  state: unknown;
  version: number;
  seq: number;
  /** Who wrote it: null for REST, undefined where a restore did not say. */
  deviceId?: string | null;
  deleted?: boolean;
}

export interface Snapshot {
  position: Position;
  entries: [string, Entry][];
}

export class SessionState {
  position: Position | undefined;
  #entries = new Map<string, Entry>();

  constructor(private readonly waiting: readonly Waiting[]) {}

  /** What the server has confirmed; a deleted key is there until the next full restore. */
  confirmed(key: string): Entry | undefined {
    return this.#entries.get(key);
  }

  /** The version to build a change of `key` on; 0 where it never was. */
  version(key: string): number {
    const entry = this.#entries.get(key);
    return entry && !entry.deleted ? entry.version : 0;
  }

  /** What to show: the confirmed state under the writes that wait. Undefined: there is no such key. */
  shown(key: string): unknown {
    const entry = this.#entries.get(key);
    let state = entry && !entry.deleted ? entry.state : undefined;
    for (const { event, payload } of this.waiting) {
      if (payload.sessionKey !== key) continue;
      if (event === "session-delete") state = undefined;
      else if (event !== "session-update") continue;
      else if ("patch" in payload) state = mergePatch(state, payload.patch);
      else if ("ops" in payload) state = applyOps(state, payload.ops as Op[]);
      else state = payload.state;
    }
    return state;
  }

  isPending(key: string): boolean {
    return this.waiting.some(({ payload }) => payload.sessionKey === key);
  }

  /** Keys that have a state, the waiting writes included. */
  keys(): string[] {
    const named = this.waiting.map(({ payload }) => payload.sessionKey).filter((key) => typeof key === "string");
    const all = new Set([...this.#entries.keys(), ...(named as string[])]);
    return [...all].filter((key) => this.shown(key) !== undefined).sort();
  }

  /** False: something newer is known. */
  take(key: string, entry: Entry): boolean {
    const known = this.#entries.get(key);
    if (known && known.seq > entry.seq) return false;
    this.#entries.set(key, entry);
    return true;
  }

  /** Takes a restore, or an answer to session-get; returns the keys that it changed. */
  restore(session: Session, isWhole: boolean): string[] {
    const changed = new Set<string>();
    if (session.mode !== "delta" && isWhole) {
      for (const [key, entry] of this.#entries) {
        if (!entry.deleted && !Object.hasOwn(session.sessionData, key)) changed.add(key);
      }
      this.#entries = new Map();
    }
    for (const [key, state] of Object.entries(session.sessionData)) {
      const known = this.#entries.get(key);
      const version = session.versions[key] ?? 0;
      if (!known || known.version !== version || known.deleted) changed.add(key);
      // The restore holds everything up to its seq, so that is what its states are true for.
      this.take(key, { state, version, seq: session.seq });
    }
    for (const key of session.removed ?? []) {
      changed.add(key);
      this.take(key, { state: null, version: 0, seq: session.seq, deleted: true });
    }
    if (isWhole) this.position = { epoch: session.epoch, seq: session.seq };
    return [...changed];
  }

  /** Changes come in order: whoever heard this one heard all before it. */
  heard(seq: number): void {
    if (this.position && seq > this.position.seq) this.position = { ...this.position, seq };
  }

  /** An answer may overtake changes, so it moves the position only where none can be missing. */
  answered(seq: number): void {
    if (this.position?.seq === seq - 1) this.position = { ...this.position, seq };
  }

  snapshot(): Snapshot | undefined {
    return this.position && { position: this.position, entries: [...this.#entries] };
  }

  load(snapshot: Snapshot): void {
    this.position = snapshot.position;
    this.#entries = new Map(snapshot.entries);
  }
}
