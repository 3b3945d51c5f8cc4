// One device of a user, as an application sees it: the session that it shows, the writes that change it, the user's
// devices and the messages between them. It puts the parts together: the connection, the outbox and its sender, the
// inbox, and the records of all of them in the storage.
import type { ManagerOptions, SocketOptions } from "socket.io-client";

import { Connection, type TandemSocket } from "./connection.js";
import { Emitter, type Off } from "./emitter.js";
import { type Change, type Emit, type Events, Refused, type Status } from "./events.js";
import { Inbox } from "./inbox.js";
import { difference } from "./merge.js";
import { Outbox } from "./outbox.js";
import type {
  Device,
  DeviceInfo,
  Failure,
  MessageSent,
  Op,
  SessionRestored,
  SessionUpdated,
  WriteOptions,
  Written,
} from "./protocol.js";
import { Records } from "./records.js";
import { request } from "./rest.js";
import { Sender } from "./sender.js";
import { SessionState } from "./state.js";
import { type Storage, defaultStorage } from "./storage.js";
import { type TokenSource, userOf } from "./token.js";

export interface Options {
  /** The server; default: where the page came from, else http://localhost:3001. */
  url?: string;
  /** What outlives the page; default: IndexedDB in browsers, memory elsewhere. */
  storage?: Storage;
  /** Whose records these are in the storage; default: the user that the token names. */
  scope?: string;
  /** Connect at once; default true. */
  autoConnect?: boolean;
  /** Passed to socket.io-client, such as `transports: ["websocket"]`. */
  socket?: Partial<ManagerOptions & SocketOptions>;
}

/** How often `transact` looks at what another device made of the key meanwhile. */
const TRANSACT_TRIES = 50;
/** Operations of one write (docs/PROTOCOL.md). */
const OPS_MAX = 1_000;

export class CrossDeviceSync extends Emitter<Events> {
  /** The connection itself, for what this class does not do. It exists from the constructor on. */
  readonly socket: TandemSocket;
  deviceId: string | undefined;
  status: Status = "connecting";
  /** Why it is not online: for good where `status` is "refused", else until it passes. */
  trouble: Failure | undefined;
  devices: readonly Device[] = [];
  /** What an earlier page left is loaded, and can be read, also offline. */
  readonly ready: Promise<void>;

  readonly #state: SessionState;
  readonly #outbox: Outbox;
  readonly #records: Records;
  readonly #connection: Connection;
  readonly #sender: Sender;
  readonly #inbox: Inbox;
  readonly #url: string;
  #isLoaded = false;

  constructor(
    token: TokenSource,
    readonly deviceInfo: DeviceInfo = {},
    options: Options = {},
  ) {
    super();
    this.#url = options.url ?? (typeof location === "undefined" ? "http://localhost:3001" : location.origin);
    const storage = options.storage ?? defaultStorage();
    const emit: Emit = (event, body) => this.emit(event, body);
    this.#outbox = new Outbox(storage);
    this.#state = new SessionState(this.#outbox.waiting);
    this.#records = new Records(storage, this.#state, this.#outbox, emit);
    this.#connection = new Connection(this.#url, options.socket, token, {
      handshake: () => this.#handshake(),
      connect: () => this.connect(),
      isHeld: () => this.#records.isHeld(),
      forgetDevice: () => this.#setDeviceId(undefined),
      statusChanged: (status, trouble) => this.#setStatus(status, trouble),
      emit,
    });
    this.socket = this.#connection.socket;
    this.#sender = new Sender(this.#connection, this.#outbox, this.#state, this.#records, {
      deviceId: () => this.deviceId,
      changed: (key, from) => this.#changed(key, from),
      emit,
    });
    this.#inbox = new Inbox(this.socket, this.#records, (message) => this.outcomes("message", message), emit);
    this.#listen();
    this.ready = this.#load(options.scope);
    this.ready.catch(() => {}); // `connect` tells.
    this.setupEventHandlers();
    if (options.autoConnect ?? true) this.connect();
    else this.status = this.#connection.status = "offline";
  }

  /** For subclasses: called once, from the constructor. */
  setupEventHandlers(): void {}

  override on<Name extends keyof Events>(event: Name, handler: (body: Events[Name]) => unknown): Off {
    const off = super.on(event, handler);
    if (event === "message") this.#inbox.tellHeld();
    return off;
  }

  // ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

  /** The state of a key as this device shows it, its own unanswered writes included; undefined: there is none. */
  get<State = unknown>(key: string): State | undefined {
    return this.#state.shown(key) as State | undefined;
  }

  /** The version that the server has confirmed; 0: the key does not exist. */
  version(key: string): number {
    return this.#state.version(key);
  }

  isPending(key: string): boolean {
    return this.#state.isPending(key);
  }

  keys(): string[] {
    return this.#state.keys();
  }

  /** Writes that are not settled yet. */
  get waiting(): number {
    return this.#outbox.waiting.length;
  }

  /** Those of them that are not in the storage yet: a page that is left now loses them. */
  get unstored(): number {
    return this.#sender.unstored;
  }

  /** Calls `handler` with the state of `key` now, if there is one, and after each change. */
  watch<State = unknown>(key: string, handler: (state: State | undefined, change?: Change) => void): Off {
    const state = this.get<State>(key);
    if (state !== undefined) handler(state);
    return this.on("change", (change) => {
      if (change.key === key) handler(change.state as State | undefined, change);
    });
  }

  // ── Writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

  /** Replaces the state of a key. It shows at once; the promise says when it is durable, or throws `Refused`. */
  updateSession(key: string, state: unknown, options: WriteOptions = {}): Promise<Written> {
    return this.#write("session-update", { sessionKey: key, state, ...options });
  }

  /** Changes some members of a key's state (RFC 7396): what others change beside them stays. */
  patchSession(key: string, patch: unknown, options: WriteOptions = {}): Promise<Written> {
    return this.#write("session-update", { sessionKey: key, patch, ...options });
  }

  /** Applies operations, all or nothing: counters count, sets grow, fields change, whatever others do. */
  applyOps(key: string, ops: Op[], options: WriteOptions = {}): Promise<Written> {
    return this.#write("session-update", { sessionKey: key, ops, ...options });
  }

  deleteSession(key: string, options: Pick<WriteOptions, "baseVersion"> = {}): Promise<Written> {
    return this.#write("session-delete", { sessionKey: key, ...options });
  }

  /**
   * Changes a key by a function of what it shows. Only the fields that the function changed are sent, so that what other
   * devices change beside them stays; it works offline, too. Arrays and scalars are changed as a whole.
   */
  edit<State = unknown>(key: string, change: (state: State | undefined) => State): Promise<Written> {
    return this.#told(this.#edit(key, change));
  }

  async #edit<State>(key: string, change: (state: State | undefined) => State): Promise<Written> {
    // Without a turn of the event loop where there is nothing to wait for: React takes a field's new value back otherwise.
    if (!this.#isLoaded) await this.ready;
    const before = this.get<State>(key);
    const after = change(structuredClone(before));
    const ops = difference(before, after);
    if (ops.length === 0) return { sessionKey: key, version: this.version(key), seq: this.#state.position?.seq ?? 0 };
    return ops.length > OPS_MAX ? this.updateSession(key, after) : this.applyOps(key, ops);
  }

  /**
   * Changes a key by a function that must see the newest state, such as one that adds to an array: where another device
   * was quicker, it is asked again with what is there then. Waits for a connection.
   */
  transact<State = unknown>(key: string, change: (state: State | undefined) => State): Promise<Written> {
    return this.#told(this.#transact(key, change));
  }

  async #transact<State>(key: string, change: (state: State | undefined) => State): Promise<Written> {
    await this.ready;
    while (this.isPending(key) && this.status !== "closed") await this.#sender.nextSettled();
    let state = this.get<State>(key);
    let baseVersion = this.version(key);
    for (let left = TRANSACT_TRIES; ; left -= 1) {
      try {
        return await this.updateSession(key, change(structuredClone(state)), { baseVersion, onConflict: "reject" });
      } catch (thrown) {
        if (!(thrown instanceof Refused) || thrown.code !== "conflict" || left === 0) throw thrown;
        const { version, state: winner, deleted } = thrown.failure;
        state = deleted ? undefined : (winner as State);
        baseVersion = deleted ? 0 : (version ?? 0);
      }
    }
  }

  /** Sends what is worth nothing later: it is not kept, and nothing happens offline. */
  sendRealtimeEvent(type: string, payload: unknown, options: { to?: string[]; coalesce?: string } = {}): void {
    if (this.status === "online") this.socket.emit("realtime-event", { type, payload, ...options });
  }

  /** Sends a message to a device, several, or "*" (all others); those that are offline get it when they come. */
  sendMessage(
    targetDeviceId: string | string[],
    message: unknown,
    options: { ttlSeconds?: number; messageId?: string } = {},
  ): Promise<MessageSent> {
    const { messageId, ...rest } = options;
    const payload = { targetDeviceId, message, ...rest };
    return this.#told(this.#sender.keep<MessageSent>("device-message", payload, messageId));
  }

  #write(event: "session-update" | "session-delete", payload: Record<string, unknown>): Promise<Written> {
    return this.#told(this.#sender.keep<Written>(event, payload));
  }

  /** A promise that nobody has to wait for: an unhandled rejection ends a process of Node's. */
  #told<Answer>(answer: Promise<Answer>): Promise<Answer> {
    answer.catch((thrown: unknown) => {
      if (thrown instanceof Refused) return; // `refused` was emitted.
      this.emit("error", { code: "callback", message: String(thrown), retryable: false });
    });
    return answer;
  }

  // ── Devices ──────────────────────────────────────────────────────────────────────────────────────────────────────

  async renameDevice(id: string, change: { name?: string; metadata?: Record<string, unknown> }): Promise<Device> {
    const device = (await this.request("PATCH", `/api/devices/${encodeURIComponent(id)}`, change)) as Device;
    this.#putDevice(id, device);
    return device;
  }

  /** Ends a device for good: its connections close everywhere. */
  async revokeDevice(id: string): Promise<void> {
    await this.request("DELETE", `/api/devices/${encodeURIComponent(id)}`);
    this.#setDevices(this.devices.filter((device) => device.id !== id));
  }

  /** REST in this user's name; throws `Refused`. */
  request(method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<unknown> {
    return request(this.#url, this.#connection.token, { method, path, body, headers });
  }

  // ── Connection ───────────────────────────────────────────────────────────────────────────────────────────────────

  connect(): void {
    this.#connection.connect(this.ready);
  }

  /** Goes offline on purpose. What is known stays readable, and writes wait. */
  disconnect(): void {
    this.#connection.disconnect();
  }

  /** Ends the client; what waits stays in the storage for the next one. */
  async close(): Promise<void> {
    if (this.status === "closed") return;
    this.#connection.close();
    this.#sender.stop();
    this.#records.stop();
    await this.ready.catch(() => {});
    await this.#records.release();
    this.#sender.tellSettled();
  }

  /** Every write so far is in the storage, or was refused: from now on a reload loses none. */
  async stored(): Promise<void> {
    await this.ready;
    await this.#sender.stored();
  }

  /** Every write so far is settled. */
  async settled(): Promise<void> {
    await this.ready;
    while (this.#outbox.waiting.length > 0 && this.status !== "closed") await this.#sender.nextSettled();
  }

  async #load(scope: string | undefined): Promise<void> {
    // Without a scope the user is who the token names; a token that names nobody has a scope of its own.
    const user = scope ?? userOf(await this.#connection.firstToken()) ?? "nobody";
    this.#records.scope = `${new URL(this.#url).host}/${user}/`;
    await this.#moveIn();
    await this.#records.load();
    this.#isLoaded = true;
    for (const key of this.keys()) this.#changed(key, "restore");
    this.#sender.tellOutbox();
    this.#records.startAdopting(() => {
      this.#sender.tellOutbox();
      this.#sender.send();
    });
  }

  /** Takes a slot and the device that goes with it. */
  async #moveIn(): Promise<void> {
    await this.#records.takeSlot(() => this.#moveOut());
    this.deviceId = (await this.#records.get("device")) as string | undefined;
    await this.#inbox.load();
  }

  /** Another tab took this one, which stood still, for gone. What waits here and there has one id, and is applied once. */
  async #moveOut(): Promise<void> {
    this.socket.disconnect();
    await this.#moveIn();
    await this.#records.moveOutbox();
    this.#connection.dial();
  }

  #handshake(): Record<string, unknown> {
    return {
      deviceInfo: this.deviceInfo,
      messageAcks: true,
      ...(this.deviceId ? { deviceId: this.deviceId } : {}),
      ...(this.#state.position ? { since: this.#state.position } : {}),
    };
  }

  #listen(): void {
    const { socket } = this;
    socket.on("session-restored", (restored) => this.#restored(restored));
    socket.on("session-updated", (updated) => this.#updated(updated));
    socket.on("device-connected", ({ deviceId, deviceInfo, connectedAt }) =>
      this.#putDevice(deviceId, { ...described(deviceInfo), online: true, ...(connectedAt ? { connectedAt } : {}) }),
    );
    socket.on("device-disconnected", ({ deviceId, lastSeen }) =>
      this.#putDevice(deviceId, { online: false, ...(lastSeen ? { lastSeen } : {}) }),
    );
    socket.on("device-updated", ({ deviceId, deviceInfo }) => this.#putDevice(deviceId, described(deviceInfo)));
    socket.on("device-removed", ({ deviceId }) =>
      this.#setDevices(this.devices.filter((device) => device.id !== deviceId)),
    );
    socket.on("realtime-event", (event) => this.emit("realtime", event));
    socket.on("device-message-status", (status) => this.emit("message-status", status));
    socket.on("server-draining", (body) => this.emit("draining", body));
  }

  #restored(restored: SessionRestored): void {
    if (restored.deviceId !== this.deviceId) this.#setDeviceId(restored.deviceId);
    const changed = this.#state.restore(restored, true);
    this.#sender.restored();
    this.#setDevices(restored.devices ?? []);
    this.#connection.opened();
    for (const key of changed) this.#changed(key, "restore");
    this.emit("restored", { mode: restored.mode, changed });
    this.#records.keepSessionSoon();
    this.#sender.send();
  }

  #updated(updated: SessionUpdated): void {
    const { sessionKey, state, version, seq, deviceId } = updated;
    const deleted = updated.deleted === true;
    const isNews = this.#state.take(sessionKey, { state, version, seq, deviceId, ...(deleted ? { deleted } : {}) });
    this.#state.heard(seq);
    if (isNews) this.#changed(sessionKey, "remote", deviceId);
    this.#records.keepSessionSoon();
  }

  // ── Telling ──────────────────────────────────────────────────────────────────────────────────────────────────────

  #changed(key: string, from: Change["from"], deviceId?: string | null): void {
    const { pending, version } = { pending: this.isPending(key), version: this.version(key) };
    const state = this.get(key);
    this.emit("change", { key, state, version, pending, from, ...(deviceId === undefined ? {} : { deviceId }) });
  }

  #setStatus(status: Status, trouble: Failure | undefined): void {
    this.status = status;
    this.trouble = trouble;
    this.emit("status", status);
  }

  #setDeviceId(id: string | undefined): void {
    this.deviceId = id;
    this.#records.keep("device", id);
  }

  #putDevice(id: string, change: Partial<Device>): void {
    const known = this.devices.find((device) => device.id === id);
    const device: Device = { ...(known ?? { id, name: "", type: "unknown", online: false }), ...change };
    this.#setDevices(
      known ? this.devices.map((other) => (other.id === id ? device : other)) : [...this.devices, device],
    );
  }

  #setDevices(devices: readonly Device[]): void {
    this.devices = devices;
    this.emit("devices", devices);
  }
}

function described(info: DeviceInfo): Partial<Device> {
  const { name, type, ...metadata } = info;
  return { ...(name === undefined ? {} : { name }), ...(type ? { type } : {}), metadata };
}
