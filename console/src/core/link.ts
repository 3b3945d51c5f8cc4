// One device's connection: what it knows, what it sends, and how it comes back.
//
// It holds what every client needs to hold: of each session key the state with the highest seq, the
// devices, and the writes that were not acknowledged yet. Those carry an opId and are sent again
// after a reconnect; the server applies each once.
import { batch, type Signal, signal } from "@preact/signals";
import { io, type Socket } from "socket.io-client";
import { freshToken, refreshed } from "./account";
import { type Failure, failureOf } from "./failure";
import { deviceIdKeeper, randomId } from "./ids";

export interface Entry {
  state: unknown;
  version: number;
  seq: number;
  /** Who wrote it: null for REST, undefined when a restore did not say. */
  deviceId?: string | null;
}

export interface Device {
  id: string;
  name: string;
  type: string;
  online: boolean;
  connectedAt?: string;
  lastSeen?: string;
  createdAt?: string;
  metadata?: Record<string, unknown>;
}

export type Ack = { ok: true; [field: string]: unknown } | { ok: false; error: Failure };

export type Status =
  /** On the way in, for the first time or again. */
  | "connecting"
  | "online"
  /** The person took it offline. */
  | "offline"
  /** For good: `ended` says why. */
  | "ended";

/** One event that travelled, for the log. */
export interface Travelled {
  at: number;
  sent: boolean;
  event: string;
  body: unknown;
}

interface Position {
  epoch: string;
  seq: number;
}

interface Write {
  event: "session-update" | "session-delete";
  payload: { opId: string; [field: string]: unknown };
  settle(ack: Ack): void;
}

/** How long an answer may take. */
const ANSWER_MS = 10_000;
/** Writes that wait for their answer, at most. */
const WRITES_MAX = 500;

export class Link {
  readonly status: Signal<Status> = signal("connecting");
  readonly ended: Signal<Failure | undefined> = signal(undefined);
  readonly deviceId: Signal<string | undefined> = signal(undefined);
  readonly data: Signal<ReadonlyMap<string, Entry>> = signal(new Map());
  readonly devices: Signal<readonly Device[]> = signal([]);
  readonly waiting: Signal<number> = signal(0);
  /** Whether the server has told the state of things once. */
  readonly restored: Signal<boolean> = signal(false);
  onTravelled: (travelled: Travelled) => void = () => {};
  onChange: (key: string, entry: Entry, deleted: boolean) => void = () => {};
  onRealtime: (type: string, payload: unknown, from: string) => void = () => {};
  onMessage: (message: unknown, from: string, queued: boolean) => void = () => {};
  onMessageStatus: (messageId: string, status: string) => void = () => {};
  onRestored: (mode: string) => void = () => {};

  private socket: Socket | undefined;
  private position: Position | undefined;
  private writes: Write[] = [];
  private seen: string[] = [];
  private closed = false;

  constructor(
    private readonly userId: string,
    private readonly role: string,
    readonly info: { name: string; type: string; [field: string]: unknown },
  ) {
    void this.start();
  }

  /** Like a phone that leaves the network: the transport goes, what it knows stays. */
  goOffline(): void {
    if (this.status.value === "ended") return;
    this.status.value = "offline";
    this.socket?.disconnect();
  }

  comeBack(): void {
    if (this.status.value !== "offline" && this.status.value !== "ended") return;
    batch(() => {
      this.status.value = "connecting";
      this.ended.value = undefined;
    });
    this.socket?.connect();
  }

  close(): void {
    this.closed = true;
    this.socket?.disconnect();
  }

  /** Sends what is worth nothing later; nothing happens while offline. */
  realtime(type: string, payload: unknown, coalesce?: string): void {
    if (this.status.value !== "online") return;
    this.emit("realtime-event", { type, payload, ...(coalesce ? { coalesce } : {}) });
  }

  /** A write that lives through disconnects: it is applied once, now or later. */
  write(payload: Record<string, unknown>, event: Write["event"] = "session-update"): Promise<Ack> {
    if (this.writes.length >= WRITES_MAX) {
      const message = "Too much is waiting to be sent; come back online first.";
      return Promise.resolve({ ok: false, error: { code: "outbox_full", message } });
    }
    return new Promise((settle) => {
      const write: Write = { event, payload: { ...payload, opId: randomId() }, settle };
      this.writes.push(write);
      this.waiting.value = this.writes.length;
      if (this.status.value === "online") this.sendWrite(write);
    });
  }

  /** One question, now: no answer is a failure. */
  ask(event: string, payload: unknown): Promise<Ack> {
    const socket = this.socket;
    if (!socket || this.status.value !== "online") {
      return Promise.resolve({ ok: false, error: { code: "offline", message: "This device is offline." } });
    }
    this.onTravelled({ at: Date.now(), sent: true, event, body: payload });
    return new Promise((resolve) => {
      socket.timeout(ANSWER_MS).emit(event, payload, (late: Error | null, ack: Ack) => {
        if (late) resolve({ ok: false, error: { code: "unreachable", message: "No answer came.", retryable: true } });
        else resolve(ack);
      });
    });
  }

  private emit(event: string, payload: unknown): void {
    this.socket?.emit(event, payload);
    this.onTravelled({ at: Date.now(), sent: true, event, body: payload });
  }

  private async start(): Promise<void> {
    const keeper = await deviceIdKeeper(this.userId, this.role);
    if (this.closed) return;
    this.deviceId.value = keeper.id;
    const socket = io({
      multiplex: false,
      transports: ["websocket", "polling"],
      reconnectionDelay: 300,
      reconnectionDelayMax: 3000,
      auth: (give) => {
        freshToken().then(
          (token) =>
            give({
              token,
              deviceInfo: this.info,
              messageAcks: true,
              ...(this.deviceId.value ? { deviceId: this.deviceId.value } : {}),
              ...(this.position ? { since: this.position } : {}),
            }),
          // The server then says `unauthorized`, which ends this link in plain words.
          () => give({}),
        );
      },
    });
    this.socket = socket;
    socket.on("session-restored", (body: Restored) => {
      keeper.keep(body.deviceId);
      this.restore(body);
    });
    socket.on("session-updated", (body: Updated) => {
      this.heard("session-updated", body);
      // Updates come in order, so whoever heard this one heard all before it.
      if (this.position && body.seq > this.position.seq) this.position = { ...this.position, seq: body.seq };
      this.take(body.sessionKey, body, body.deleted === true);
    });
    socket.on("device-connected", (body: { deviceId: string; deviceInfo: DeviceInfo; connectedAt?: string }) => {
      this.heard("device-connected", body);
      this.putDevice(body.deviceId, {
        ...infoOf(body.deviceInfo),
        online: true,
        ...(body.connectedAt ? { connectedAt: body.connectedAt } : {}),
      });
    });
    socket.on("device-disconnected", (body: { deviceId: string; lastSeen?: string }) => {
      this.heard("device-disconnected", body);
      this.putDevice(body.deviceId, { online: false, ...(body.lastSeen ? { lastSeen: body.lastSeen } : {}) });
    });
    socket.on("device-updated", (body: { deviceId: string; deviceInfo: DeviceInfo }) => {
      this.heard("device-updated", body);
      this.putDevice(body.deviceId, infoOf(body.deviceInfo));
    });
    socket.on("device-removed", (body: { deviceId: string }) => {
      this.heard("device-removed", body);
      this.devices.value = this.devices.value.filter((device) => device.id !== body.deviceId);
    });
    socket.on("realtime-event", (body: { type: string; payload: unknown; sourceDeviceId: string }) => {
      this.heard("realtime-event", body);
      this.onRealtime(body.type, body.payload, body.sourceDeviceId);
    });
    socket.on("device-message", (body: DeviceMessage) => {
      this.heard("device-message", body);
      // Kept messages come again until they are acknowledged; their id says which were shown.
      this.emit("device-message-ack", { messageId: body.messageId });
      if (this.seen.includes(body.messageId)) return;
      this.seen = [...this.seen.slice(-200), body.messageId];
      this.onMessage(body.message, body.sourceDeviceId, body.queued === true);
    });
    socket.on("device-message-status", (body: { messageId: string; status: string }) => {
      this.heard("device-message-status", body);
      this.onMessageStatus(body.messageId, body.status);
    });
    socket.on("auth-expiring", (body) => {
      this.heard("auth-expiring", body);
      void freshToken().then((token) => this.ask("auth-refresh", { token }), () => {});
    });
    socket.on("server-draining", (body) => this.heard("server-draining", body));
    socket.on("error", (failure: Failure) => {
      this.heard("error", failure);
      if (FINAL.includes(failure.code)) this.end(failure);
    });
    socket.on("connect_error", (error) => this.refused(error.message));
    socket.on("disconnect", (reason) => {
      if (this.status.value === "offline" || this.status.value === "ended" || this.closed) return;
      if (reason === "io server disconnect") {
        this.end({ code: "unauthorized", message: "The server ended this connection." });
      } else this.status.value = "connecting";
    });
  }

  private refused(code: string): void {
    if (code === "token_expired") {
      void freshToken()
        .then((token) => refreshed(token))
        .then(
          () => this.socket?.connect(),
          (thrown) => this.end(failureOf(thrown)),
        );
    } else if (FINAL.includes(code)) this.end({ code, message: "The server refused this device." });
    // Anything else passes; socket.io-client tries again by itself.
  }

  private end(failure: Failure): void {
    if (this.closed || this.status.value === "ended") return;
    batch(() => {
      this.ended.value = failure;
      this.status.value = "ended";
    });
    this.socket?.disconnect();
    if (failure.code === "device_revoked") this.deviceId.value = undefined;
  }

  private restore(body: Restored): void {
    this.heard("session-restored", body);
    const full = body.mode !== "delta";
    batch(() => {
      this.deviceId.value = body.deviceId;
      this.devices.value = body.devices ?? [];
      this.position = { epoch: body.epoch, seq: body.seq };
      if (full) {
        const gone = [...this.data.value.keys()].filter((key) => !(key in body.sessionData));
        this.data.value = new Map();
        for (const key of gone) this.onChange(key, { state: null, version: 0, seq: body.seq }, true);
      }
      for (const [key, state] of Object.entries(body.sessionData)) {
        this.take(key, { state, version: body.versions[key] ?? 0, seq: body.seq }, false);
      }
      for (const key of body.removed ?? []) this.take(key, { state: null, version: 0, seq: body.seq }, true);
      this.restored.value = true;
      this.status.value = "online";
    });
    for (const write of this.writes) this.sendWrite(write);
    this.onRestored(body.mode);
  }

  /** Of each key what has the highest seq is true (docs/PROTOCOL.md, promise 2). */
  private take(key: string, entry: Entry, deleted: boolean): void {
    const known = this.data.value.get(key);
    if (known && known.seq > entry.seq) return;
    const next = new Map(this.data.value);
    if (deleted) next.delete(key);
    else {
      next.set(key, {
        state: entry.state,
        version: entry.version,
        seq: entry.seq,
        ...(entry.deviceId !== undefined ? { deviceId: entry.deviceId } : {}),
      });
    }
    this.data.value = next;
    this.onChange(key, entry, deleted);
  }

  private sendWrite(write: Write): void {
    this.onTravelled({ at: Date.now(), sent: true, event: write.event, body: write.payload });
    // No timeout: after a disconnect it is sent again, and until then the transport delivers.
    this.socket?.emit(write.event, write.payload, (ack: Ack) => {
      if (!this.writes.includes(write)) return;
      if (!ack.ok && ack.error.retryable) {
        setTimeout(() => {
          if (this.status.value === "online" && this.writes.includes(write)) this.sendWrite(write);
        }, ack.error.retryAfterMs ?? 1000);
        return;
      }
      this.writes = this.writes.filter((other) => other !== write);
      this.waiting.value = this.writes.length;
      this.onTravelled({ at: Date.now(), sent: false, event: "ack", body: ack });
      if (ack.ok) this.acknowledged(write, ack);
      write.settle(ack);
    });
  }

  private acknowledged(write: Write, ack: Ack & { ok: true }): void {
    const key = write.payload.sessionKey as string;
    const seq = ack.seq as number;
    // An ack may overtake the updates before it, so it moves the position only when none can be missing.
    if (this.position?.seq === seq - 1) this.position = { ...this.position, seq };
    const entry = { version: ack.version as number, seq, deviceId: this.deviceId.value ?? null };
    if (write.event === "session-delete") this.take(key, { ...entry, state: null }, true);
    else if ("state" in ack) this.take(key, { ...entry, state: ack.state }, false);
    else if ("state" in write.payload) this.take(key, { ...entry, state: write.payload.state }, false);
    else void this.reload(key);
  }

  /** What a repeated patch or ops list came to is not in its ack. */
  private async reload(key: string): Promise<void> {
    const ack = await this.ask("session-get", { keys: [key] });
    if (!ack.ok) return;
    const { sessionData, versions, seq } = ack as unknown as Restored;
    const state = sessionData[key];
    if (key in sessionData) this.take(key, { state, version: versions[key] ?? 0, seq }, false);
  }

  private putDevice(id: string, change: Partial<Device>): void {
    const known = this.devices.value.find((device) => device.id === id);
    const device: Device = { ...(known ?? { id, name: "", type: "unknown", online: false }), ...change };
    this.devices.value = known
      ? this.devices.value.map((other) => (other.id === id ? device : other))
      : [...this.devices.value, device];
  }

  private heard(event: string, body: unknown): void {
    this.onTravelled({ at: Date.now(), sent: false, event, body });
  }
}

/** Codes after which a device stays away. */
const FINAL = ["unauthorized", "token_expired", "device_revoked", "replaced", "invalid_device_info", "invalid_token"];

interface Restored {
  sessionData: Record<string, unknown>;
  deviceId: string;
  versions: Record<string, number>;
  seq: number;
  epoch: string;
  mode: "full" | "delta";
  removed?: string[];
  devices?: Device[];
}

interface Updated extends Entry {
  sessionKey: string;
  deleted?: boolean;
}

interface DeviceInfo {
  name?: string;
  type?: string;
  [field: string]: unknown;
}

interface DeviceMessage {
  message: unknown;
  sourceDeviceId: string;
  messageId: string;
  queued?: boolean;
}

function infoOf(info: DeviceInfo): Partial<Device> {
  const { name, type, ...metadata } = info;
  return { ...(name !== undefined ? { name } : {}), ...(type ? { type } : {}), metadata };
}
