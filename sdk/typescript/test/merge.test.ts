// What is shown while a write waits is what the server makes of it: rules as tables, and the server asked about each.
import { afterAll, beforeAll, expect, test } from "vitest";

import { applyOps, difference, mergePatch } from "../src/merge.js";
import type { Op } from "../src/protocol.js";
import { type Server, endAll, serve } from "../../../tests/support/server.mjs";

let server: Server;
let token: string;

beforeAll(async () => {
  server = await serve({ LIMIT_EVENTS_PER_SECOND: "0" });
  ({ token } = await server.register());
});
afterAll(endAll);

const patches: [unknown, unknown][] = [
  [{ a: 1 }, { b: 2 }],
  [{ a: 1, b: { c: 1 } }, { b: { c: null, d: 2 } }],
  [{ a: [1, 2] }, { a: [3] }],
  ["text", { a: 1 }],
  [{ a: 1 }, [1]],
  [{ a: 1 }, null],
  [{}, { a: { b: { c: null } } }],
  [{ a: 1 }, JSON.parse('{"__proto__": {"x": 1}}')],
];

test.each(patches)("a patch makes of %j with %j what the server makes of it", async (state, patch) => {
  await server.ask("PUT", "/api/session/p", state, token);
  const answer = await server.ask("PATCH", "/api/session/p", patch, token);
  expect(answer.error).toBeUndefined();
  const { sessionData } = await server.session(token);
  expect(JSON.stringify(mergePatch(state, patch))).toBe(JSON.stringify(sessionData.p));
});

const operations: [unknown, Op[]][] = [
  [{}, [{ op: "set", path: "/a/b", value: 1 }]],
  [{ n: 1 }, [{ op: "inc", path: "/n", value: 2 }]],
  [{}, [{ op: "inc", path: "/n", value: 2 }]],
  [{ n: 5 }, [{ op: "max", path: "/n", value: 7 }, { op: "min", path: "/n", value: 6 }]],
  [{}, [{ op: "max", path: "/m", value: 3 }]],
  [{ set: [1] }, [{ op: "add", path: "/set", value: 2 }, { op: "add", path: "/set", value: 1 }]],
  [{}, [{ op: "add", path: "/set", value: "x" }]],
  [{ set: [1, 2] }, [{ op: "remove", path: "/set", value: 1 }]],
  [{ a: 1 }, [{ op: "remove", path: "/none", value: 1 }]],
  [{ a: { b: 1 } }, [{ op: "unset", path: "/a/b" }]],
  [{ a: 1 }, [{ op: "unset", path: "/x/y" }]],
  [{ a: [1, 2, 3] }, [{ op: "set", path: "/a/1", value: 9 }]],
  [{ "a/b": 1, "~": 2 }, [{ op: "inc", path: "/a~1b", value: 1 }, { op: "inc", path: "/~0", value: 1 }]],
  [{ a: 1 }, [{ op: "set", path: "", value: [1] }]],
];

test.each(operations)("operations make of %j with %j what the server makes of it", async (state, ops) => {
  const { CrossDeviceSync, MemoryStorage } = await import("../src/index.js");
  await server.ask("PUT", "/api/session/o", state, token);
  const client = new CrossDeviceSync(token, {}, { url: server.url, storage: new MemoryStorage() });
  await client.applyOps("o", ops);
  await client.close();
  const { sessionData } = await server.session(token);
  expect(JSON.stringify(applyOps(state, ops))).toBe(JSON.stringify(sessionData.o));
});

test("operations that cannot be applied change nothing", () => {
  const state = { n: "text", a: [1] };
  for (const op of [
    { op: "inc", path: "/n", value: 1 },
    { op: "add", path: "/n", value: 1 },
    { op: "set", path: "/a/7", value: 1 },
    { op: "set", path: "no pointer", value: 1 },
  ] as Op[]) {
    expect(applyOps(state, [{ op: "set", path: "/b", value: 1 }, op])).toEqual(state);
  }
});

test.each([
  [{ a: 1, b: { c: 1, d: 2 } }, { a: 1, b: { c: 3 }, e: null }, ["unset /b/d", "set /b/c", "set /e"]],
  [undefined, { a: 1 }, ["set /a"]],
  [undefined, {}, ["set "]],
  [undefined, [1], ["set "]],
  [{ a: [1] }, { a: [1, 2] }, ["set /a"]],
  [{ "a/b": { "~": 1 } }, { "a/b": { "~": 2 } }, ["set /a~1b/~0"]],
  [{ a: 1 }, { a: 1 }, []],
  ["x", { a: 1 }, ["set "]],
])("the difference from %j to %j is what was changed, and makes one of the other", (before, after, expected) => {
  const ops = difference(before, after);
  expect(ops.map(({ op, path }) => `${op} ${path}`)).toEqual(expected);
  expect(applyOps(before, ops)).toEqual(after);
});
