// Typed events of the client itself.

export type Off = () => void;

export class Emitter<Events extends { [name: string]: unknown }> {
  readonly #handlers = new Map<keyof Events, Set<(body: never) => unknown>>();

  /** Calls `handler` on every `event` from now on; the returned function ends that. */
  on<Name extends keyof Events>(event: Name, handler: (body: Events[Name]) => unknown): Off {
    let handlers = this.#handlers.get(event);
    if (!handlers) this.#handlers.set(event, (handlers = new Set()));
    handlers.add(handler);
    return () => void this.#handlers.get(event)?.delete(handler);
  }

  protected emit<Name extends keyof Events>(event: Name, body: Events[Name]): void {
    for (const handler of this.#of(event)) {
      // One handler that throws must not keep the others, or the connection, from going on.
      try {
        handler(body);
      } catch (thrown) {
        queueMicrotask(() => {
          throw thrown;
        });
      }
    }
  }

  /** Calls all handlers, which may be asynchronous, and says what came of each. */
  protected outcomes<Name extends keyof Events>(event: Name, body: Events[Name]): Promise<PromiseSettledResult<unknown>[]> {
    return Promise.allSettled(this.#of(event).map(async (handler) => handler(body)));
  }

  #of<Name extends keyof Events>(event: Name): ((body: Events[Name]) => unknown)[] {
    return [...(this.#handlers.get(event) ?? [])] as ((body: Events[Name]) => unknown)[];
  }
}
