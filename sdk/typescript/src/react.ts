// React: a provider that holds one client, and hooks that render what it knows. They read through useSyncExternalStore,
// so that what is on the screen is one state of things, also while React renders concurrently.
import {
  type ReactNode,
  createContext,
  createElement,
  useCallback,
  useContext,
  useEffect,
  useRef,
  useSyncExternalStore,
} from "react";

import type { CrossDeviceSync } from "./client.js";
import type { Status } from "./events.js";
import type { Device, Failure, Op, Written } from "./protocol.js";

const Context = createContext<CrossDeviceSync | null>(null);

/** Gives `client` to everything inside. Whoever made it closes it. */
export function TandemProvider(props: { client: CrossDeviceSync; children?: ReactNode }): ReactNode {
  return createElement(Context.Provider, { value: props.client }, props.children);
}

/** The client of the provider around. */
export function useTandem(): CrossDeviceSync {
  const client = useContext(Context);
  if (!client) throw new Error("useTandem and its kin need a TandemProvider around them");
  return client;
}

export interface SessionHandle<State> {
  /** What to show; undefined: there is no such key, or nothing is known yet. */
  state: State | undefined;
  /** A write of this device waits for its answer. */
  pending: boolean;
  version: number;
  set(state: State): Promise<Written>;
  patch(patch: unknown): Promise<Written>;
  ops(ops: Op[]): Promise<Written>;
  edit(change: (state: State | undefined) => State): Promise<Written>;
  remove(): Promise<Written>;
}

/** One key of the session, always current. */
export function useSession<State = unknown>(key: string): SessionHandle<State> {
  const client = useTandem();
  type Value = { state: State | undefined; pending: boolean; version: number };
  // React wants the same object as long as nothing has changed.
  const last = useRef<{ client: CrossDeviceSync; key: string; value: Value } | undefined>(undefined);
  const read = (): Value => {
    if (last.current?.client === client && last.current.key === key) return last.current.value;
    const value = { state: client.get<State>(key), pending: client.isPending(key), version: client.version(key) };
    last.current = { client, key, value };
    return value;
  };
  const subscribe = useCallback(
    (tell: () => void) => {
      // Something may have changed between rendering and now.
      last.current = undefined;
      return client.on("change", (change) => {
        if (change.key !== key) return;
        last.current = undefined;
        tell();
      });
    },
    [client, key],
  );
  const value = useSyncExternalStore(subscribe, read, () => NOTHING as Value);
  return {
    ...value,
    set: useCallback((state: State) => client.updateSession(key, state), [client, key]),
    patch: useCallback((patch: unknown) => client.patchSession(key, patch), [client, key]),
    ops: useCallback((ops: Op[]) => client.applyOps(key, ops), [client, key]),
    edit: useCallback((change: (state: State | undefined) => State) => client.edit(key, change), [client, key]),
    remove: useCallback(() => client.deleteSession(key), [client, key]),
  };
}

const NOTHING = { state: undefined, pending: false, version: 0 };
const NO_DEVICES: readonly Device[] = [];

/** The user's devices, this one among them. */
export function useDevices(): readonly Device[] {
  const client = useTandem();
  const subscribe = useCallback((tell: () => void) => client.on("devices", tell), [client]);
  return useSyncExternalStore(
    subscribe,
    () => client.devices,
    () => NO_DEVICES,
  );
}

/** Calls `handler` with every event of `type`, and gives the function that sends one. */
export function useRealtime<Payload = unknown>(
  type: string,
  handler?: (payload: Payload, sourceDeviceId: string) => void,
): (payload: Payload, options?: { to?: string[]; coalesce?: string }) => void {
  const client = useTandem();
  const latest = useRef(handler);
  useEffect(() => {
    latest.current = handler;
  });
  useEffect(
    () =>
      client.on("realtime", (event) => {
        if (event.type === type) latest.current?.(event.payload as Payload, event.sourceDeviceId);
      }),
    [client, type],
  );
  return useCallback((payload, options) => client.sendRealtimeEvent(type, payload, options), [client, type]);
}

export interface ConnectionStatus {
  status: Status;
  /** Why it is not online: for good where `status` is "refused", else until it passes. */
  trouble: Failure | undefined;
  /** Writes that are not settled yet. */
  waiting: number;
  /** Those of them that are not in the storage yet: a page that is left now loses them. */
  unstored: number;
}

export function useConnectionStatus(): ConnectionStatus {
  const client = useTandem();
  const subscribe = useCallback(
    (tell: () => void) => {
      const offs = [client.on("status", tell), client.on("outbox", tell)];
      return () => offs.forEach((off) => off());
    },
    [client],
  );
  const status = useSyncExternalStore(
    subscribe,
    () => client.status,
    () => "connecting" as const,
  );
  const waiting = useSyncExternalStore(
    subscribe,
    () => client.waiting,
    () => 0,
  );
  const unstored = useSyncExternalStore(
    subscribe,
    () => client.unstored,
    () => 0,
  );
  const trouble = useSyncExternalStore(
    subscribe,
    () => client.trouble,
    () => undefined,
  );
  return { status, trouble, waiting, unstored };
}
