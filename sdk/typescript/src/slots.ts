// Tabs of one browser share a storage, and each is a device of its own: a tab holds a slot for as long as it lives, and
// the slot's device id, last known state and outbox with it. A tab that is reloaded takes the lowest free slot, which is
// the one it had. Web Locks tell which slots are held; where there are none, that is known within this page only.
import type { Storage } from "./storage.js";

export interface Slot {
  readonly number: number;
  release(): void;
}

const SLOTS_MAX = 64;

/** Slots held in this page, by storage. */
const heldHere = new WeakMap<Storage, Set<string>>();

/** The lowest free slot of `scope`. */
export async function takeSlot(storage: Storage, scope: string): Promise<Slot> {
  for (let number = 0; number < SLOTS_MAX; number += 1) {
    const slot = await trySlot(storage, scope, number);
    if (slot) return slot;
  }
  throw new Error("too many tabs of one user");
}

/** One slot, unless somebody holds it. */
export async function trySlot(storage: Storage, scope: string, number: number): Promise<Slot | undefined> {
  const name = `${scope}slot:${number}`;
  const held = heldHere.get(storage) ?? new Set();
  heldHere.set(storage, held);
  if (held.has(name)) return undefined;
  held.add(name);
  const unlock = await lock(`tandem:${name}`, storage);
  if (!unlock) {
    held.delete(name);
    return undefined;
  }
  return {
    number,
    release: () => {
      held.delete(name);
      unlock();
    },
  };
}

/** Takes a Web Lock until the returned function is called; nothing if another tab holds it. */
async function lock(name: string, storage: Storage): Promise<(() => void) | undefined> {
  const locks = typeof navigator === "undefined" ? undefined : navigator.locks;
  const isShared = storage.constructor.name !== "MemoryStorage";
  if (!locks || !isShared) return () => {};
  return new Promise((resolve, reject) => {
    locks
      .request(name, { ifAvailable: true }, (granted) => {
        if (!granted) return resolve(undefined);
        return new Promise<void>((release) => resolve(release));
      })
      .catch(reject);
  });
}
