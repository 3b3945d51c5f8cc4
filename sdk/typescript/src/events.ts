// What a client tells: its status, its events, and the error of a promise whose write was refused.
import type { Kept } from "./outbox.js";
import type { Device, DeviceMessage, Failure } from "./protocol.js";

export type Status =
  /** On the way in, for the first time or again. */
  | "connecting"
  | "online"
  /** Disconnected on purpose; `connect()` comes back. */
  | "offline"
  /** The server refused this device for good; `trouble` says why. */
  | "refused"
  | "closed";

export interface Change {
  key: string;
  /** What to show; undefined: the key is gone. */
  state: unknown;
  version: number;
  /** A write of this device waits for its answer. */
  pending: boolean;
  from: "local" | "remote" | "restore" | "answer" | "refusal";
  deviceId?: string | null;
}

export type Events = {
  change: Change;
  status: Status;
  devices: readonly Device[];
  realtime: { type: string; payload: unknown; sourceDeviceId: string };
  /** Confirmed to the server when a handler got through with it, which may be asynchronous; else it comes again. */
  message: DeviceMessage;
  "message-status": { messageId: string; deviceId: string; status: "delivered" | "expired" };
  /** Either number has changed: `waiting` writes are not settled yet, `unstored` of them are not in the storage yet. */
  outbox: { waiting: number; unstored: number };
  restored: { mode: "full" | "delta"; changed: string[] };
  /** A write was refused; also one of an earlier page, which nobody waits for any more. */
  refused: { event: Kept["event"]; payload: Record<string, unknown>; error: Failure };
  draining: { reconnectInMs: number };
  error: Failure;
};

/** How the parts of a client tell something in its name. */
export type Emit = <Name extends keyof Events>(event: Name, body: Events[Name]) => void;

/** A write that was not applied, after its effect was taken back. Whoever does not wait for it hears `refused`. */
export class Refused extends Error {
  readonly code: string;

  constructor(readonly failure: Failure) {
    super(failure.message);
    this.name = "Refused";
    this.code = failure.code;
  }
}
