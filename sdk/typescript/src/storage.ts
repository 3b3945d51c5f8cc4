// Where a client keeps what must outlive a page: its device id, what it last knew, and writes that wait. IndexedDB in
// browsers, memory elsewhere; anything with the four methods that are not optional will do.
import type { Failure } from "./protocol.js";

export interface Storage {
  get(key: string): Promise<unknown>;
  set(key: string, value: unknown): Promise<void>;
  delete(key: string): Promise<void>;
  /** Everything whose key begins with `prefix`, in the order of the keys. */
  entries(prefix: string): Promise<[string, unknown][]>;
  /**
   * Changes a value in one step that nothing comes between, and returns what is there then; undefined: nothing. Needed
   * where several pages or processes share the storage and have no Web Locks.
   */
  update?(key: string, change: (value: unknown) => unknown): Promise<unknown>;
}

export class MemoryStorage implements Storage {
  readonly #values = new Map<string, unknown>();

  async get(key: string): Promise<unknown> {
    return this.#values.get(key);
  }

  async set(key: string, value: unknown): Promise<void> {
    this.#values.set(key, structuredClone(value));
  }

  async delete(key: string): Promise<void> {
    this.#values.delete(key);
  }

  async entries(prefix: string): Promise<[string, unknown][]> {
    const found = [...this.#values].filter(([key]) => key.startsWith(prefix));
    return found.sort(([a], [b]) => (a < b ? -1 : 1));
  }
}

const STORE = "kept";

export class IndexedDbStorage implements Storage {
  #opened: Promise<IDBDatabase> | undefined;

  constructor(
    private readonly name = "tandem",
    private readonly factory: IDBFactory = indexedDB,
  ) {}

  get(key: string): Promise<unknown> {
    return this.#run("readonly", (store) => store.get(key));
  }

  async set(key: string, value: unknown): Promise<void> {
    await this.#run("readwrite", (store) => last(store.put(value, key)));
  }

  async delete(key: string): Promise<void> {
    await this.#run("readwrite", (store) => last(store.delete(key)));
  }

  async entries(prefix: string): Promise<[string, unknown][]> {
    const range = IDBKeyRange.bound(prefix, `${prefix}\uffff`);
    const [keys, values] = await Promise.all([
      this.#run("readonly", (store) => store.getAllKeys(range)),
      this.#run("readonly", (store) => store.getAll(range)),
    ]);
    return keys.map((key, at) => [String(key), values[at]]);
  }

  async update(key: string, change: (value: unknown) => unknown): Promise<unknown> {
    let next: unknown;
    await this.#run("readwrite", (store) => {
      const read = store.get(key);
      read.onsuccess = () => {
        next = change(read.result);
        if (next === undefined) store.delete(key);
        else store.put(next, key);
      };
      return read;
    });
    return next;
  }

  async #run<Result>(mode: IDBTransactionMode, ask: (store: IDBObjectStore) => IDBRequest<Result>): Promise<Result> {
    const database = await (this.#opened ??= this.#open());
    return new Promise((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const request = ask(transaction.objectStore(STORE));
      // A write counts when it is committed, not when it is accepted.
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error ?? request.error);
    });
  }

  #open(): Promise<IDBDatabase> {
    return new Promise((resolve, reject) => {
      const request = this.factory.open(this.name, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(STORE);
      request.onsuccess = () => {
        // Another tab with a newer version must not wait for this one.
        request.result.onversionchange = () => {
          request.result.close();
          this.#opened = undefined;
        };
        resolve(request.result);
      };
      request.onerror = () => reject(request.error);
    });
  }
}

/** Commits with this request, rather than when the page has heard that it was done: one that is left in between loses it. */
function last<Result>(request: IDBRequest<Result>): IDBRequest<Result> {
  request.transaction?.commit?.();
  return request;
}

/** IndexedDB where there is one, memory elsewhere. */
export function defaultStorage(): Storage {
  return typeof indexedDB === "undefined" ? new MemoryStorage() : new IndexedDbStorage();
}

export const storageFailure = (thrown: unknown): Failure => ({ code: "storage", message: String(thrown), retryable: false });
