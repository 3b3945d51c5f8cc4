// @tandem/client: a session that is in step on all devices of one person.
export { CrossDeviceSync } from "./client.js";
export type { Options, TandemSocket, TokenSource } from "./client.js";
export { type Change, Refused, type Status } from "./events.js";
export { IndexedDbStorage, MemoryStorage, type Storage } from "./storage.js";
export type * from "./protocol.js";
export type { Off } from "./emitter.js";
