// The wire contract as types: every event of docs/PROTOCOL.md, for this client and for a plain socket.io-client:
//
//     const socket: Socket<ServerToClientEvents, ClientToServerEvents> = io(url, options);

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** What a device says of itself; further fields are kept as its metadata. */
export interface DeviceInfo {
  name?: string;
  type?: string;
  [field: string]: unknown;
}

/** A device of the user's as the server lists it. */
export interface Device {
  id: string;
  name: string;
  type: string;
  online: boolean;
  connectedAt?: string | null;
  lastSeen?: string | null;
  createdAt?: string;
  metadata?: Record<string, unknown>;
}

/** Why something was refused. Branch on `code`. */
export interface Failure {
  code: string;
  message: string;
  retryable: boolean;
  retryAfterMs?: number;
  /** The commit's answer was lost: the write may have happened. */
  unknown?: boolean;
  /** Of a conflict: the version in force, and its state unless it is deleted. */
  version?: number;
  state?: unknown;
  deleted?: boolean;
  deviceId?: string | null;
  field?: string;
  limit?: string;
  event?: string;
  [detail: string]: unknown;
}

export type Ack<T> = ({ ok: true } & T) | { ok: false; error: Failure };

export interface Position {
  epoch: string;
  seq: number;
}

export type Op =
  | { op: "set" | "inc" | "max" | "min" | "add" | "remove"; path: string; value: unknown }
  | { op: "unset"; path: string };

export type OnConflict = "reject" | "overwrite" | "merge";

export interface WriteOptions {
  /** Only on this version; 0: the key must not exist. */
  baseVersion?: number;
  /** What to do when the key has moved on. */
  onConflict?: OnConflict;
}

export type SessionUpdate = WriteOptions & { sessionKey: string; opId?: string } & (
    | { state: unknown }
    | { patch: unknown }
    | { ops: Op[] }
  );

export interface SessionDelete {
  sessionKey: string;
  baseVersion?: number;
  opId?: string;
}

export interface Written {
  sessionKey: string;
  version: number;
  seq: number;
  merged?: boolean;
  duplicate?: boolean;
  state?: unknown;
}

export interface Session {
  sessionData: Record<string, unknown>;
  versions: Record<string, number>;
  seq: number;
  epoch: string;
  mode: "full" | "delta";
  removed: string[];
}

export interface SessionRestored extends Session {
  deviceId: string;
  devices: Device[];
  queuedMessages: number;
  tokenExpiresAt: string;
}

export interface SessionUpdated {
  sessionKey: string;
  state: unknown;
  deviceId: string | null;
  version: number;
  seq: number;
  updatedAt: string;
  deleted?: boolean;
}

export interface DeviceMessage {
  message: unknown;
  sourceDeviceId: string;
  messageId: string;
  sentAt: string;
  queued?: boolean;
}

export interface ServerToClientEvents {
  "session-restored": (restored: SessionRestored) => void;
  "session-updated": (updated: SessionUpdated) => void;
  "device-connected": (body: { deviceId: string; deviceInfo: DeviceInfo; connectedAt?: string }) => void;
  "device-disconnected": (body: { deviceId: string; reason?: string; lastSeen?: string }) => void;
  "device-updated": (body: { deviceId: string; deviceInfo: DeviceInfo }) => void;
  "device-removed": (body: { deviceId: string }) => void;
  "realtime-event": (body: { type: string; payload: unknown; sourceDeviceId: string }) => void;
  "device-message": (message: DeviceMessage) => void;
  "device-message-status": (body: { messageId: string; deviceId: string; status: "delivered" | "expired" }) => void;
  "auth-expiring": (body: { expiresAt: string }) => void;
  "server-draining": (body: { reconnectInMs: number }) => void;
  error: (failure: Failure) => void;
}

export interface ClientToServerEvents {
  "session-update": (update: SessionUpdate, ack?: (ack: Ack<Written>) => void) => void;
  "session-delete": (gone: SessionDelete, ack?: (ack: Ack<Written>) => void) => void;
  "session-get": (what: { keys?: string[]; since?: Position }, ack?: (ack: Ack<Session>) => void) => void;
  "realtime-event": (
    event: { type: string; payload: unknown; to?: string[]; coalesce?: string },
    ack?: (ack: Ack<object>) => void,
  ) => void;
  "device-message": (
    message: { targetDeviceId: string | string[]; message: unknown; messageId?: string; ttlSeconds?: number },
    ack?: (ack: Ack<MessageSent>) => void,
  ) => void;
  "device-message-ack": (body: { messageId: string }, ack?: (ack: Ack<object>) => void) => void;
  "auth-refresh": (body: { token: string }, ack?: (ack: Ack<{ expiresAt: string }>) => void) => void;
}

export interface MessageSent {
  messageId: string;
  /** `delivered` when all have it; an answer to a repeat may say `expired`. */
  status: "delivered" | "queued" | "expired";
  /** Of a message for several. */
  targets?: { deviceId: string; status: "delivered" | "queued" | "expired" | "refused"; error?: Failure }[];
  duplicate?: boolean;
}
