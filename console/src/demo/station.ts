// One of the two demo devices: its connection and what it shows. And the pair of them, with the log
// of what travelled.
import { effect, type Signal, signal } from "@preact/signals";
import { Link, type Travelled } from "../core/link";
import { randomId } from "../core/ids";
import { Controls, DIAL } from "./dial";
import { FIRST_TEXT, NOTE, Note } from "./note";

export type Side = "laptop" | "phone";

export interface Message {
  id: string;
  text: string;
  mine: boolean;
  status?: "sending" | "delivered" | "queued" | "expired" | "failed";
  /** It waited for this device while it was away. */
  waited?: boolean;
}

export type StepId = "type" | "drag" | "message" | "merge" | "conflict";

export interface LogLine extends Travelled {
  id: number;
  side: Side;
  times: number;
}

const LOG_MAX = 60;
const MESSAGES_MAX = 30;

export class Station {
  readonly link: Link;
  readonly note: Note;
  readonly controls: Controls;
  readonly messages: Signal<readonly Message[]> = signal([]);

  constructor(
    userId: string,
    readonly side: Side,
    readonly title: string,
    readonly pair: Pair,
  ) {
    const type = side === "laptop" ? "desktop" : "mobile";
    this.link = new Link(userId, `demo-${side}`, { name: title, type, demo: true });
    this.note = new Note(this.link);
    this.controls = new Controls(this.link);
    this.link.onChange = (key, entry, deleted) => {
      if (key === NOTE) this.note.changed(entry, deleted);
      if (key === DIAL) this.controls.changed();
    };
    this.link.onRealtime = (type, payload, from) => {
      if (from !== this.pair.other(this).link.deviceId.value) return;
      if (type === "caret") this.note.pointed(payload);
      if (type === "volume") {
        this.controls.dragged(payload);
        this.pair.done("drag");
      }
    };
    this.link.onMessage = (message, _from, queued) => {
      const { text } = message as { text?: unknown };
      if (typeof text !== "string") return;
      this.put({ id: randomId(), text, mine: false, ...(queued ? { waited: true } : {}) });
      this.pair.done("message");
    };
    this.link.onMessageStatus = (messageId, status) => {
      if (status === "delivered" || status === "expired") this.mark(messageId, status);
    };
    this.link.onRestored = (mode) => {
      const entry = this.link.data.value.get(NOTE);
      if (mode === "full" && entry) this.note.changed(entry, false, true);
      void this.note.flush();
      void this.begin();
    };
    this.link.onTravelled = (travelled) => this.pair.log(side, travelled);
    this.note.onArrived = () => {
      if (pair.restoredOnce) this.pair.done("type");
    };
    this.note.onDecided = () => this.pair.done("conflict");
    effect(() => {
      if (this.note.merges.value > 0) this.pair.done("merge");
    });
  }

  /** The first device there puts the note on the table; a second finds it there. */
  private async begin(): Promise<void> {
    if (this.link.data.value.has(NOTE)) return;
    await this.link.write({ sessionKey: NOTE, state: { text: FIRST_TEXT }, baseVersion: 0 });
  }

  async send(text: string): Promise<void> {
    const target = this.pair.other(this).link.deviceId.value;
    const id = randomId();
    this.put({ id, text, mine: true, status: "sending" });
    if (!target) return this.mark(id, "failed");
    const ack = await this.link.ask("device-message", { targetDeviceId: target, message: { text }, messageId: id });
    // The target's own acknowledgement may have been quicker.
    const known = this.messages.value.find((message) => message.id === id)?.status;
    if (known === "sending") this.mark(id, ack.ok ? (ack.status as "delivered" | "queued") : "failed");
  }

  goOffline(): void {
    this.pair.other(this).note.forgetCaret();
    this.link.goOffline();
  }

  private put(message: Message): void {
    this.messages.value = [...this.messages.value.slice(1 - MESSAGES_MAX), message];
  }

  private mark(id: string, status: NonNullable<Message["status"]>): void {
    this.messages.value = this.messages.value.map((message) => (message.id === id ? { ...message, status } : message));
  }
}

export class Pair {
  readonly laptop: Station;
  readonly phone: Station;
  readonly lines: Signal<readonly LogLine[]> = signal([]);
  readonly achieved: Signal<ReadonlySet<StepId>> = signal(new Set<StepId>());
  private lineId = 0;

  constructor(userId: string) {
    this.laptop = new Station(userId, "laptop", "Demo laptop", this);
    this.phone = new Station(userId, "phone", "Demo phone", this);
  }

  /** Whether both were told the state of things, so that what comes now is news. */
  get restoredOnce(): boolean {
    return this.laptop.link.restored.value && this.phone.link.restored.value;
  }

  other(station: Station): Station {
    return station === this.laptop ? this.phone : this.laptop;
  }

  done(step: StepId): void {
    if (!this.achieved.value.has(step)) this.achieved.value = new Set([...this.achieved.value, step]);
  }

  log(side: Side, travelled: Travelled): void {
    const lines = this.lines.value;
    const last = lines[lines.length - 1];
    const again =
      last && last.side === side && last.event === travelled.event && last.sent === travelled.sent &&
      travelled.event === "realtime-event";
    this.lines.value = again
      ? [...lines.slice(0, -1), { ...last, at: travelled.at, body: travelled.body, times: last.times + 1 }]
      : [...lines.slice(1 - LOG_MAX), { ...travelled, side, times: 1, id: this.lineId++ }];
  }

  close(): void {
    this.laptop.link.close();
    this.phone.link.close();
  }
}
