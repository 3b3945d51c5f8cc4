// Typed events of the client itself.

export type Off = () => void;

export class Emitter<Events extends { [name: string]: unknown }> {
  readonly #handlers = new Map<keyof Events, Set<(body: never) => void>>();

  /** Calls `handler` on every `event` from now on; the returned function ends that. */
  on<Name extends keyof Events>(event: Name, handler: (body: Events[Name]) => void): Off {
    let handlers = this.#handlers.get(event);
    if (!handlers) this.#handlers.set(event, (handlers = new Set()));
    handlers.add(handler as (body: never) => void);
    return () => void this.#handlers.get(event)?.delete(handler as (body: never) => void);
  }

  protected emit<Name extends keyof Events>(event: Name, body: Events[Name]): void {
    for (const handler of [...(this.#handlers.get(event) ?? [])]) {
      // One handler that throws must not keep the others, or the connection, from going on.
      try {
        (handler as (body: Events[Name]) => void)(body);
      } catch (thrown) {
        queueMicrotask(() => {
          throw thrown;
        });
      }
    }
  }
}
