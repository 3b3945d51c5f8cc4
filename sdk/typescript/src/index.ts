// @tandem/client: a session that is in step on all devices of one person.
export { CrossDeviceSync, Refused } from "./client.js";
export type { Change, Options, Status, TandemSocket, TokenSource } from "./client.js";
export { IndexedDbStorage, MemoryStorage, type Storage } from "./storage.js";
export type * from "./protocol.js";
export type { Off } from "./emitter.js";
