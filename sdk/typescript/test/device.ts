// Devices for the tests: clients that end with the test, storages as browsers have them, and waiting for what they show.
import "fake-indexeddb/auto";

import { CrossDeviceSync, IndexedDbStorage, type Options, type TokenSource } from "../src/index.js";
import { type Server, endAll } from "../../../tests/support/server.mjs";

const clients: CrossDeviceSync[] = [];
let databases = 0;

/** A storage of its own, as another browser would have. */
export const browser = (): IndexedDbStorage => new IndexedDbStorage(`test-${(databases += 1)}`);

export function open(server: Server, token: TokenSource, name: string, options: Options = {}): CrossDeviceSync {
  return ends(new CrossDeviceSync(token, { name, type: "test" }, { url: server.url, storage: browser(), ...options }));
}

/** Closed with the others. */
export function ends(client: CrossDeviceSync): CrossDeviceSync {
  clients.push(client);
  return client;
}

/** For afterEach. */
export async function closeAll(): Promise<void> {
  await Promise.all(clients.splice(0).map((client) => client.close()));
  await endAll();
}

export function until(
  client: CrossDeviceSync,
  event: "change" | "status" | "devices" | "message" | "message-status" | "refused" | "realtime",
  fits: () => boolean,
): Promise<void> {
  return new Promise((resolve) => {
    if (fits()) return resolve();
    const off = client.on(event, () => {
      if (!fits()) return;
      off();
      resolve();
    });
  });
}

export const online = (client: CrossDeviceSync): Promise<void> =>
  until(client, "status", () => client.status === "online");

export const shows = (client: CrossDeviceSync, key: string, state: unknown): Promise<void> =>
  until(client, "change", () => JSON.stringify(client.get(key)) === JSON.stringify(state) && !client.isPending(key));
