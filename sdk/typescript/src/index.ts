// @tandem/client: a session that is in step on all devices of one person.
export { CrossDeviceSync, type Options } from "./client.js";
export type { TandemSocket } from "./connection.js";
export { type Change, Refused, type Status } from "./events.js";
export type { TokenSource } from "./token.js";
export { IndexedDbStorage, MemoryStorage, type Storage } from "./storage.js";
export type * from "./protocol.js";
export type { Off } from "./emitter.js";
