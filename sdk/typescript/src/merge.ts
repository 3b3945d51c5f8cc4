// What a write that is not acknowledged yet makes of a state: merge patches (RFC 7396) and operations on JSON pointers
// (RFC 6901), as the server will apply them. It is shown until the server's answer takes its place, so an operation that
// the server will refuse simply shows nothing.
import type { Op } from "./protocol.js";

type Container = Record<string, unknown> | unknown[];

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

export function mergePatch(target: unknown, patch: unknown): unknown {
  if (!isObject(patch)) return patch;
  const result: Record<string, unknown> = isObject(target) ? { ...target } : {};
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) delete result[name];
    else put(result, name, mergePatch(Object.hasOwn(result, name) ? result[name] : undefined, value));
  }
  return result;
}

/** `state` after `ops`, or `state` itself where one cannot be applied: all or nothing. */
export function applyOps(state: unknown, ops: readonly Op[]): unknown {
  let result: unknown = state === undefined ? {} : structuredClone(state);
  try {
    for (const op of ops) result = applied(result, op);
  } catch {
    return state;
  }
  return result;
}

/** The operations that make `after` of `before`, field by field; arrays and scalars as a whole. */
export function difference(before: unknown, after: unknown): Op[] {
  if (before === undefined && isObject(after) && Object.keys(after).length > 0) return compared({}, after, "");
  return compared(before, after, "");
}

function compared(before: unknown, after: unknown, path: string): Op[] {
  if (!isObject(before) || !isObject(after)) {
    return JSON.stringify(before) === JSON.stringify(after) ? [] : [{ op: "set", path, value: after }];
  }
  const below = (name: string) => `${path}/${name.replaceAll("~", "~0").replaceAll("/", "~1")}`;
  const gone = Object.keys(before).filter((name) => !Object.hasOwn(after, name) || after[name] === undefined);
  const kept = Object.keys(after).filter((name) => after[name] !== undefined);
  return [
    ...gone.map((name): Op => ({ op: "unset", path: below(name) })),
    ...kept.flatMap((name) => compared(Object.hasOwn(before, name) ? before[name] : undefined, after[name], below(name))),
  ];
}

function applied(root: unknown, op: Op): unknown {
  if (op.path === "") return op.op === "unset" ? {} : changed(root, op);
  const tokens = op.path.split("/").map((token) => token.replaceAll("~1", "/").replaceAll("~0", "~"));
  if (tokens.shift() !== "") throw new Error("not a pointer");
  const last = tokens.pop() as string;
  let at: unknown = root;
  for (const token of tokens) {
    const next = child(at, token);
    if (next === undefined) {
      if (op.op === "unset" || op.op === "remove") return root;
      if (!isObject(at)) throw new Error("no such index");
      at = put(at, token, {});
    } else at = next;
  }
  if (typeof at !== "object" || at === null) throw new Error("not a container");
  if (op.op === "unset") {
    if (Array.isArray(at)) at.splice(index(at, last), 1);
    else delete (at as Record<string, unknown>)[last];
    return root;
  }
  const before = child(at, last);
  if (op.op === "remove" && before === undefined) return root;
  put(at as Container, last, changed(before, op));
  return root;
}

function changed(before: unknown, op: Exclude<Op, { op: "unset" }>): unknown {
  const { value } = op;
  const numbers = (or: number): [number, number] => {
    const from = before === undefined ? or : before;
    if (typeof from !== "number" || typeof value !== "number") throw new Error("not a number");
    return [from, value];
  };
  switch (op.op) {
    case "set":
      return value;
    case "inc": {
      const [from, by] = numbers(0);
      return from + by;
    }
    case "max":
      return Math.max(...numbers(value as number));
    case "min":
      return Math.min(...numbers(value as number));
    default: {
      const set = before === undefined ? [] : before;
      if (!Array.isArray(set)) throw new Error("not an array");
      const same = JSON.stringify(value);
      const rest = set.filter((item) => JSON.stringify(item) !== same);
      if (op.op === "remove") return rest;
      return rest.length < set.length ? set : [...set, value];
    }
  }
}

function child(at: unknown, token: string): unknown {
  if (Array.isArray(at)) return at[index(at, token)];
  return isObject(at) && Object.hasOwn(at, token) ? at[token] : undefined;
}

function index(array: unknown[], token: string): number {
  if (!/^(0|[1-9]\d*)$/.test(token) || Number(token) >= array.length) throw new Error("no such index");
  return Number(token);
}

/** Sets a member so that a name like `__proto__` is only a name. */
function put<Value>(at: Container, name: string, value: Value): Value {
  if (Array.isArray(at)) at[index(at, name)] = value;
  else Object.defineProperty(at, name, { value, writable: true, enumerable: true, configurable: true });
  return value;
}
