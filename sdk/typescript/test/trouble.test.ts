// What may go wrong around the client: nobody waits, tabs meet, token sources and handlers fail, storages are full.
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { afterEach, expect, test, vi } from "vitest";

import { IndexedDbStorage } from "../src/index.js";
import { serve } from "../../../tests/support/server.mjs";
import { browser, closeAll, online, open, shows, until } from "./device.js";

afterEach(async () => {
  vi.useRealTimers();
  await closeAll();
});

/** Two tabs of one browser: pages that share nothing but what is stored. Node has no Web Locks. */
function tabs(): [IndexedDbStorage, IndexedDbStorage, IndexedDbStorage] {
  const name = `tabs-${crypto.randomUUID()}`;
  return [new IndexedDbStorage(name), new IndexedDbStorage(name), new IndexedDbStorage(name)];
}

test("a refused write that nobody waits for does not end a process", async () => {
  const server = await serve();
  const { token } = await server.register();
  const script = `
    import { CrossDeviceSync } from ${JSON.stringify(new URL("../dist/esm/index.js", import.meta.url).href)};
    const sync = new CrossDeviceSync(${JSON.stringify(token)}, { name: "Script" }, { url: ${JSON.stringify(server.url)} });
    const codes = [];
    sync.on("refused", ({ event, error }) => codes.push(event + " " + error.code));
    sync.updateSession("n", 1, { baseVersion: 7 });
    sync.edit("", () => 1);
    sync.sendMessage("00000000-0000-4000-8000-000000000000", "hello");
    await new Promise((done) => sync.on("refused", () => codes.length === 3 && done()));
    await sync.close();
    sync.updateSession("n", 2);
    setImmediate(() => console.log(JSON.stringify(codes.sort())));
  `;
  const { stdout } = await promisify(execFile)("node", ["--input-type=module", "--eval", script]);
  expect(JSON.parse(stdout)).toEqual([
    "device-message unknown_device",
    "session-update closed",
    "session-update conflict",
    "session-update invalid_key",
  ]);
});

test("writes keep their order across keys, also where some are put off", async () => {
  const server = await serve({ LIMIT_EVENTS_PER_SECOND: "5" });
  const { token } = await server.register();
  const [phone, laptop] = [open(server, token, "Phone"), open(server, token, "Laptop")];
  await Promise.all([online(phone), online(laptop)]);
  const seen: unknown[] = [];
  laptop.on("change", ({ state }) => seen.push(state));
  let putOff = 0;
  phone.disconnect();
  const written = Array.from({ length: 30 }, (_, n) => n);
  for (const n of written) void phone.updateSession(n % 3 ? `key${n}` : "often", n);
  const sent: unknown[] = [];
  phone.socket.onAnyOutgoing((event, payload: { state?: unknown }) => {
    if (event === "session-update" && sent.includes(payload.state)) putOff += 1;
    sent.push(payload.state);
  });
  phone.connect();
  await until(laptop, "change", () => seen.length === written.length);

  expect(putOff).toBeGreaterThan(0);
  expect(seen).toEqual(written);
});

test("two tabs without Web Locks are two devices, lose nothing and send each write once", async () => {
  const server = await serve();
  const { token } = await server.register();
  const [one, two, three] = tabs();
  const first = open(server, token, "Tab", { storage: one });
  const second = open(server, token, "Tab", { storage: two });
  await Promise.all([online(first), online(second)]);
  expect(first.deviceId).not.toBe(second.deviceId);

  // Both are closed with everything they wrote; two that come at once share it.
  for (const tab of [first, second]) {
    tab.disconnect();
    for (let n = 0; n < 20; n += 1) void tab.applyOps("counter", [{ op: "inc", path: "/n", value: 1 }]);
    await tab.close();
  }
  const later = [two, three].map((storage) => open(server, token, "Tab", { storage, autoConnect: false }));
  await Promise.all(later.map((tab) => tab.ready));
  const sent: string[] = [];
  for (const tab of later) {
    tab.socket.onAnyOutgoing((event, { opId }: { opId: string }) => event === "session-update" && sent.push(opId));
    tab.connect();
  }
  await Promise.all(later.map((tab) => tab.settled()));

  expect((await server.session(token)).sessionData.counter).toEqual({ n: 40 });
  expect(sent.length).toBe(40);
  expect(new Set(sent).size).toBe(40);
});

test("a tab that stood still until its place was taken goes on as another device", async () => {
  const server = await serve();
  const { token } = await server.register();
  const [one, two] = tabs();
  const still = open(server, token, "Tab", { storage: one });
  await online(still);
  const was = still.deviceId;
  vi.useFakeTimers({ toFake: ["Date"] });
  vi.setSystemTime(Date.now() + 200_000);
  const quick = open(server, token, "Tab", { storage: two });
  await online(quick);
  expect(quick.deviceId).toBe(was);
  await until(still, "status", () => still.status === "online" && still.deviceId !== was);

  await still.updateSession("by", "the one that stood still");
  await shows(quick, "by", "the one that stood still");
  expect(quick.status).toBe("online");
});

test("what a tab that is gone left is sent by one that is open, without a reload", async () => {
  const server = await serve();
  const { token } = await server.register();
  const [one, two] = tabs();
  vi.useFakeTimers({ toFake: ["setInterval", "clearInterval"] });
  const stays = open(server, token, "Tab", { storage: one });
  await online(stays);
  const goes = open(server, token, "Tab", { storage: two, autoConnect: false });
  await goes.ready;
  void goes.updateSession("left", "behind");
  await goes.close();
  expect(stays.get("left")).toBeUndefined();
  vi.advanceTimersByTime(30_000);

  await shows(stays, "left", "behind");
  expect((await server.session(token)).sessionData.left).toBe("behind");
});

test("a token source that fails is asked again, and the status says so meanwhile", async () => {
  const server = await serve();
  const { token } = await server.register();
  let asked = 0;
  const source = () => {
    asked += 1;
    if (asked === 1) throw new Error("the login page is closed");
    if (asked % 2 === 0) return Promise.reject(new Error("the login server is away"));
    return token;
  };
  const phone = open(server, source, "Phone");
  const told: unknown[] = [];
  phone.on("status", (status) => told.push([status, phone.trouble?.code, phone.trouble?.message]));
  await online(phone);
  await phone.updateSession("n", 1);

  // Twice in vain for whose records to load, once for the connection.
  expect(told).toEqual([
    ["connecting", "token_source", "the login page is closed"],
    ["connecting", "token_source", "the login server is away"],
    ["connecting", "token_source", "the login server is away"],
    ["online", undefined, undefined],
  ]);
});

test("a renewal whose token source fails is tried again on the same connection", async () => {
  const server = await serve({ TOKEN_TTL_SECONDS: "30" });
  let { token, refreshToken } = await server.register();
  let fails = 1;
  const source = async ({ expired }: { expired: boolean }) => {
    if (!expired) return token;
    if (fails-- > 0) throw new Error("not now");
    ({ token, refreshToken } = await server.ask("POST", "/api/auth/refresh", { refreshToken }));
    return token;
  };
  const phone = open(server, source, "Phone", { scope: "ann" });
  const told: unknown[] = [];
  phone.on("status", (status) => told.push([status, phone.trouble?.message]));
  await until(phone, "status", () => told.length === 3);

  expect(told).toEqual([
    ["online", undefined],
    ["online", "not now"],
    ["online", undefined],
  ]);
});

test("a message is confirmed when a handler has heard it, and not before", async () => {
  const server = await serve();
  const { token } = await server.register();
  const [phone, laptop] = [open(server, token, "Phone"), open(server, token, "Laptop")];
  await Promise.all([online(phone), online(laptop)]);
  const delivered: string[] = [];
  phone.on("message-status", ({ messageId, status }) => delivered.push(`${messageId} ${status}`));

  const { messageId, status } = await phone.sendMessage(laptop.deviceId as string, "hello");
  expect(status).toBe("queued");
  const heard: unknown[] = [];
  laptop.on("message", async ({ message }) => {
    heard.push(message);
    await Promise.resolve();
  });
  await until(phone, "message-status", () => delivered.length > 0);

  expect(heard).toEqual(["hello"]);
  expect(delivered).toEqual([`${messageId} delivered`]);
  expect((await phone.sendMessage(laptop.deviceId as string, "again")).status).toBe("delivered");
});

test("a message that its handler failed on comes again, and one that was heard does not", async () => {
  const server = await serve();
  const { token } = await server.register();
  const [phone, laptop] = [open(server, token, "Phone"), open(server, token, "Laptop")];
  await Promise.all([online(phone), online(laptop)]);
  const heard: unknown[] = [];
  const errors: string[] = [];
  laptop.on("error", ({ code }) => errors.push(code));
  const off = laptop.on("message", async ({ message }) => {
    heard.push(message);
    throw new Error("cannot be shown now");
  });
  const { status } = await phone.sendMessage(laptop.deviceId as string, "first");
  expect(status).toBe("queued");
  off();
  laptop.on("message", ({ message }) => void heard.push(message));
  laptop.disconnect();
  laptop.connect();
  await until(laptop, "message", () => heard.length === 2);
  laptop.disconnect();
  laptop.connect();
  await online(laptop);
  await phone.sendMessage(laptop.deviceId as string, "second");
  await until(laptop, "message", () => heard.length === 3);

  expect(heard).toEqual(["first", "first", "second"]);
  expect(errors).toEqual(["handler"]);
});

test("a write that cannot be kept is refused, and the next ones are not held up", async () => {
  const server = await serve();
  const { token } = await server.register();
  const storage = browser();
  const phone = open(server, token, "Phone", { storage });
  await online(phone);
  vi.spyOn(storage, "set").mockRejectedValueOnce(new Error("the disk is full"));

  await expect(phone.updateSession("n", 1)).rejects.toMatchObject({ code: "storage" });
  expect(phone.get("n")).toBeUndefined();
  expect(await phone.updateSession("n", 2)).toMatchObject({ version: 1 });
});

test("a write counts as stored when it is in the storage, and not before", async () => {
  const server = await serve();
  const { token } = await server.register();
  const storage = browser();
  const phone = open(server, token, "Phone", { storage });
  await online(phone);
  phone.disconnect();
  const left = async () => (await storage.entries("")).filter(([key]) => key.includes("/outbox/")).length;
  const told: unknown[] = [];
  phone.on("outbox", ({ waiting, unstored }) => told.push([waiting, unstored]));
  const set = storage.set.bind(storage);
  let commit: () => void = () => {};
  vi.spyOn(storage, "set").mockImplementationOnce(async (key, value) => {
    await new Promise<void>((resolve) => (commit = resolve));
    await set(key, value);
  });

  for (const n of [1, 2]) void phone.updateSession("n", n);
  const stored = phone.stored();
  expect(phone.waiting).toBe(2);
  expect(phone.unstored).toBe(2);
  await vi.waitFor(() => expect(storage.set).toHaveBeenCalled());
  expect(await left()).toBe(0);
  expect(told).toEqual([[1, 1], [2, 2]]);

  commit();
  await stored;
  expect(await left()).toBe(2);
  expect(told).toEqual([[1, 1], [2, 2], [2, 1], [2, 0]]);
  expect(phone.unstored).toBe(0);
});

test("a message that waits is told when it comes and when it is settled", async () => {
  const server = await serve();
  const { token } = await server.register();
  const [phone, laptop] = [open(server, token, "Phone"), open(server, token, "Laptop")];
  await Promise.all([online(phone), online(laptop)]);
  const told: unknown[] = [];
  phone.on("outbox", ({ waiting, unstored }) => told.push([waiting, unstored]));

  await phone.sendMessage(laptop.deviceId as string, "hello");
  expect(told).toEqual([[1, 1], [1, 0], [0, 0]]);
});

test("a client that never learned whose it is closes all the same", async () => {
  const server = await serve();
  const phone = open(server, () => Promise.reject(new Error("the login server is away")), "Phone");
  void phone.updateSession("n", 1);
  await until(phone, "status", () => phone.trouble?.code === "token_source");

  await phone.close();
  expect(phone.status).toBe("closed");
});
