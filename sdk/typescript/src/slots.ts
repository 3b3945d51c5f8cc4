// Tabs of one browser share a storage, and each is a device of its own: a tab holds a slot for as long as it lives, and
// the slot's device id, last known state and outbox with it. A tab that is reloaded takes the lowest free slot, which is
// the one it had. Web Locks tell which slots are held. Where there are none, as on pages that come over plain http, a
// lease in the storage does: its holder renews it, and loses the slot if it was frozen for longer than the lease runs.
import { MemoryStorage, type Storage } from "./storage.js";

export interface Slot {
  readonly number: number;
  /** Whether it is still ours; asked before anything is done in its name after a pause. */
  isHeld(): Promise<boolean>;
  release(): void;
}

/** What keeps other tabs out. */
interface Hold {
  isHeld(): Promise<boolean>;
  end(): void;
}

export const SLOTS_MAX = 64;
/** Browsers let the timers of a hidden tab run once a minute; a lease has to outlive two of them. */
const LEASE_MS = 150_000;
const RENEW_MS = 30_000;

interface Lease {
  holder: string;
  until: number;
}

/** Slots held in this page, by storage. */
const heldHere = new WeakMap<Storage, Set<string>>();

/** The lowest free slot of `scope`; `lost` is called if another tab takes it all the same. */
export async function takeSlot(storage: Storage, scope: string, lost: () => void): Promise<Slot> {
  for (let number = 0; number < SLOTS_MAX; number += 1) {
    const slot = await trySlot(storage, scope, number, lost);
    if (slot) return slot;
  }
  throw new Error("too many tabs of one user");
}

/** One slot, unless somebody holds it. */
export async function trySlot(
  storage: Storage,
  scope: string,
  number: number,
  lost: () => void = () => {},
): Promise<Slot | undefined> {
  const name = `${scope}${number}`;
  const held = heldHere.get(storage) ?? new Set();
  heldHere.set(storage, held);
  if (held.has(name)) return undefined;
  held.add(name);
  const free = () => void held.delete(name);
  const kept = await hold(storage, name, () => {
    free();
    lost();
  }).catch((thrown: unknown) => {
    free();
    throw thrown;
  });
  if (!kept) {
    free();
    return undefined;
  }
  return {
    number,
    isHeld: kept.isHeld,
    release: () => {
      free();
      kept.end();
    },
  };
}

/** Nothing, if another tab is in. */
async function hold(storage: Storage, name: string, lost: () => void): Promise<Hold | undefined> {
  if (storage instanceof MemoryStorage) return { isHeld, end: () => {} };
  const locks = typeof navigator === "undefined" ? undefined : navigator.locks;
  return locks ? lock(locks, `tandem:${name}`) : lease(storage, `${name}/lease`, lost);
}

const isHeld = async () => true;

function lock(locks: LockManager, name: string): Promise<Hold | undefined> {
  return new Promise((resolve, reject) => {
    locks
      .request(name, { ifAvailable: true }, (granted) => {
        if (!granted) return resolve(undefined);
        return new Promise<void>((end) => resolve({ isHeld, end }));
      })
      .catch(reject);
  });
}

async function lease(storage: Storage, key: string, lost: () => void): Promise<Hold | undefined> {
  const holder = crypto.getRandomValues(new Uint32Array(4)).join("-");
  const mine = (): Lease => ({ holder, until: Date.now() + LEASE_MS });
  const before = leftByThisTab(key);
  const isOurs = (value: unknown) => (value as Lease | undefined)?.holder === holder;
  const isFree = (value: unknown) => {
    const known = value as Lease | undefined;
    return !known || known.until < Date.now() || known.holder === before;
  };
  const taken = await update(storage, key, (value) => (isFree(value) ? mine() : value));
  if (!isOurs(taken)) return undefined;

  const forget = noteWhenLeft(key, holder);
  let isLost = false;
  const stop = () => {
    clearInterval(renewing);
    forget();
  };
  const renew = async () => {
    const now = await update(storage, key, (value) => (isOurs(value) ? mine() : value));
    if (isOurs(now)) return true;
    if (!isLost) {
      isLost = true;
      stop();
      lost();
    }
    return false;
  };
  // A storage that fails now is asked again; if it fails for as long as the lease runs, somebody else may come in.
  const renewing: ReturnType<typeof setInterval> & { unref?(): void } = setInterval(
    () => void renew().catch(() => {}),
    RENEW_MS,
  );
  renewing.unref?.(); // It keeps no process of Node's alive.
  return {
    isHeld: renew,
    end: () => {
      stop();
      update(storage, key, (value) => (isOurs(value) ? undefined : value)).catch(() => {});
    },
  };
}

async function update(storage: Storage, key: string, change: (value: unknown) => unknown): Promise<unknown> {
  if (storage.update) return storage.update(key, change);
  const next = change(await storage.get(key));
  await (next === undefined ? storage.delete(key) : storage.set(key, next));
  return next;
}

/**
 * A page that is left has no time to give its lease back, and the one that comes after it in the same tab should not wait
 * for it to run out. So it leaves a note. A tab that is duplicated takes none along: there is one only after a page ended.
 */
function noteWhenLeft(key: string, holder: string): () => void {
  if (typeof sessionStorage === "undefined" || typeof addEventListener === "undefined") return () => {};
  const leave = () => sessionStorage.setItem(key, holder);
  const come = () => sessionStorage.removeItem(key);
  addEventListener("pagehide", leave);
  addEventListener("pageshow", come);
  return () => {
    removeEventListener("pagehide", leave);
    removeEventListener("pageshow", come);
  };
}

function leftByThisTab(key: string): string | undefined {
  if (typeof sessionStorage === "undefined") return undefined;
  const holder = sessionStorage.getItem(key) ?? undefined;
  sessionStorage.removeItem(key);
  return holder;
}
