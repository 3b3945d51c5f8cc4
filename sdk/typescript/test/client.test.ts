// The client against real nodes.
import { afterEach, expect, test } from "vitest";

import { CrossDeviceSync, type Change, Refused } from "../src/index.js";
import { serve } from "../../../tests/support/server.mjs";
import { browser, closeAll, ends, online, open, shows, until } from "./device.js";

afterEach(closeAll);

test("what one device changes the other shows, and each knows the other", async () => {
  const server = await serve();
  const { token } = await server.register();
  const phone = open(server, token, "Phone");
  const laptop = open(server, token, "Laptop");
  await Promise.all([online(phone), online(laptop)]);

  const written = await phone.updateSession("note", { text: "hello" });
  await shows(laptop, "note", { text: "hello" });

  expect(written).toMatchObject({ version: 1, seq: 1 });
  expect(laptop.version("note")).toBe(1);
  await until(phone, "devices", () => phone.devices.filter((device) => device.online).length === 2);
  expect(phone.devices.map((device) => device.name).sort()).toEqual(["Laptop", "Phone"]);

  const heard = new Promise((resolve) => laptop.on("realtime", resolve));
  phone.sendRealtimeEvent("cursor", { line: 3 });
  expect(await heard).toMatchObject({ type: "cursor", payload: { line: 3 }, sourceDeviceId: phone.deviceId });
});

test("the class of the replaced server's README works as its users wrote it", async () => {
  const server = await serve();
  const { token } = await server.register();
  const seen: unknown[] = [];
  class Mine extends CrossDeviceSync {
    override setupEventHandlers(): void {
      this.socket.on("session-restored", ({ sessionData, deviceId }) => seen.push({ sessionData, deviceId }));
      this.socket.on("session-updated", ({ sessionKey, state }) => seen.push({ sessionKey, state }));
    }
  }
  const mine = new Mine(token, { name: "Chrome Desktop", type: "desktop" }, { url: server.url, storage: browser() });
  ends(mine);
  await online(mine);
  const other = open(server, token, "Other");
  await other.updateSession("editor", { content: "Hello World", cursor: 5 });
  await shows(mine, "editor", { content: "Hello World", cursor: 5 });
  expect(seen).toEqual([
    { sessionData: {}, deviceId: mine.deviceId },
    { sessionKey: "editor", state: { content: "Hello World", cursor: 5 } },
  ]);
});

test("a write shows at once, and what the server refuses is taken back and told", async () => {
  const server = await serve();
  const { token } = await server.register();
  const phone = open(server, token, "Phone");
  await phone.updateSession("n", 1);
  const changes: Change[] = [];
  phone.on("change", (change) => changes.push(change));

  const stale = phone.updateSession("n", 2, { baseVersion: 7 });
  expect(phone.get("n")).toBe(2);
  expect(phone.isPending("n")).toBe(true);
  const refused = await stale.catch((thrown: unknown) => thrown);

  expect(refused).toBeInstanceOf(Refused);
  expect((refused as Refused).failure).toMatchObject({ code: "conflict", version: 1, state: 1 });
  expect(phone.get("n")).toBe(1);
  expect(changes.map(({ state, from, pending }) => [state, from, pending])).toEqual([
    [2, "local", true],
    [1, "refusal", false],
  ]);
});

test("an edit shows before the call returns, as a field on a page needs it", async () => {
  const server = await serve();
  const { token } = await server.register();
  const phone = open(server, token, "Phone");
  await phone.ready;
  const edit = phone.edit<{ text: string }>("note", () => ({ text: "typed" }));
  expect(phone.get("note")).toEqual({ text: "typed" });
  await edit;
});

test("two devices that edit offline both keep what they did", async () => {
  const server = await serve();
  const { token } = await server.register();
  const phone = open(server, token, "Phone");
  const laptop = open(server, token, "Laptop");
  await phone.updateSession("doc", { title: "a", body: "b", views: 0 });
  await shows(laptop, "doc", { title: "a", body: "b", views: 0 });

  phone.disconnect();
  laptop.disconnect();
  type Doc = { title: string; body: string; views: number };
  const edits = [
    phone.edit<Doc>("doc", (doc) => ({ ...(doc as Doc), title: "from the phone" })),
    laptop.edit<Doc>("doc", (doc) => ({ ...(doc as Doc), body: "from the laptop" })),
    phone.applyOps("doc", [{ op: "inc", path: "/views", value: 1 }]),
    laptop.applyOps("doc", [{ op: "inc", path: "/views", value: 1 }]),
  ];
  await until(phone, "change", () => phone.get<Doc>("doc")?.views === 1);
  phone.connect();
  laptop.connect();
  await Promise.all(edits);

  const merged = { title: "from the phone", body: "from the laptop", views: 2 };
  await Promise.all([shows(phone, "doc", merged), shows(laptop, "doc", merged)]);
  expect((await server.session(token)).sessionData.doc).toEqual(merged);
});

test("a transaction that comes too late is made again on what is there", async () => {
  const server = await serve();
  const { token } = await server.register();
  const phone = open(server, token, "Phone");
  await online(phone);
  phone.disconnect();
  const asked: unknown[] = [];
  const edit = phone.transact<number[]>("list", (list) => {
    asked.push(list);
    return [...(list ?? []), 2];
  });
  await until(phone, "change", () => phone.isPending("list"));
  await server.ask("PUT", "/api/session/list", [1], token);
  phone.connect();
  await edit;

  expect(asked).toEqual([undefined, [1]]);
  expect((await server.session(token)).sessionData.list).toEqual([1, 2]);
});

test("two devices that add to one list at once lose nothing", async () => {
  const server = await serve();
  const { token } = await server.register();
  const phone = open(server, token, "Phone");
  const laptop = open(server, token, "Laptop");
  await Promise.all([online(phone), online(laptop)]);
  const add = (client: CrossDeviceSync, n: number) => client.transact<number[]>("list", (list) => [...(list ?? []), n]);
  await Promise.all([1, 2, 3, 4, 5].flatMap((n) => [add(phone, n), add(laptop, n + 10)]));
  const { list } = (await server.session(token)).sessionData;
  expect([...list].sort((a: number, b: number) => a - b)).toEqual([1, 2, 3, 4, 5, 11, 12, 13, 14, 15]);
});

test("500 edits made offline arrive once each over a reload and a killed node", async () => {
  const server = await serve();
  const { token } = await server.register();
  const storage = browser();
  const before = open(server, token, "Phone", { storage });
  await online(before);
  const deviceId = before.deviceId;
  before.disconnect();
  for (let n = 0; n < 500; n += 1) {
    const write = n % 2 ? before.applyOps(`count${n % 5}`, [{ op: "inc", path: "/n", value: 1 }]) : before.updateSession(`k${n}`, n);
    write.catch(() => {});
  }
  expect(before.waiting).toBe(500);
  await before.close();

  const after = open(server, token, "Phone", { storage });
  await after.ready;
  expect(after.waiting).toBe(500);
  expect(after.get("count1")).toEqual({ n: 50 });
  // Somewhere in the middle the node dies, with answers on their way.
  await until(after, "change", () => after.waiting < 400 && after.waiting > 0);
  await server.kill();
  await server.start();
  await after.settled();

  expect(after.deviceId).toBe(deviceId);
  const { sessionData, seq } = await server.session(token);
  for (let key = 0; key < 5; key += 1) expect(sessionData[`count${key}`]).toEqual({ n: 50 });
  expect(Object.keys(sessionData).length).toBe(255);
  expect(seq).toBe(500);
});

test("two tabs of one browser are two devices, and what a closed one left is sent by the other", async () => {
  const server = await serve();
  const { token } = await server.register();
  const storage = browser();
  const first = open(server, token, "Tab", { storage });
  const second = open(server, token, "Tab", { storage });
  await Promise.all([online(first), online(second)]);
  expect(first.deviceId).not.toBe(second.deviceId);

  second.disconnect();
  second.applyOps("n", [{ op: "inc", path: "", value: 1 }]).catch(() => {});
  second.applyOps("left", [{ op: "set", path: "/by", value: "the second" }]).catch(() => {});
  await second.close();
  await first.close();
  const alone = open(server, token, "Tab", { storage });
  await alone.settled();
  await online(alone);
  await until(alone, "change", () => alone.waiting === 0);

  expect((await server.session(token)).sessionData.left).toEqual({ by: "the second" });
});

test("a device that was away gets only what it missed, and shows what it knew until then", async () => {
  const server = await serve();
  const { token } = await server.register();
  const storage = browser();
  const before = open(server, token, "Phone", { storage });
  await before.updateSession("a", 1);
  await before.updateSession("b", 1);
  await before.close();
  await server.ask("PUT", "/api/session/b", 2, token);
  await server.ask("DELETE", "/api/session/a", undefined, token);

  const after = open(server, token, "Phone", { storage, autoConnect: false });
  await after.ready;
  expect([after.get("a"), after.get("b")]).toEqual([1, 1]);
  const restored = new Promise((resolve) => after.on("restored", resolve));
  after.connect();

  expect(await restored).toEqual({ mode: "delta", changed: ["b", "a"] });
  expect([after.get("a"), after.get("b")]).toEqual([undefined, 2]);
});

test("a message for a device that is away is there when it comes, once", async () => {
  const server = await serve();
  const { token } = await server.register();
  const storage = browser();
  const phone = open(server, token, "Phone");
  const laptop = open(server, token, "Laptop", { storage });
  await Promise.all([online(phone), online(laptop)]);
  const target = laptop.deviceId as string;
  laptop.disconnect();
  await until(phone, "devices", () => phone.devices.some((device) => device.id === target && !device.online));

  const sent = await phone.sendMessage(target, { say: "later" });
  expect(sent.status).toBe("queued");
  const heard: unknown[] = [];
  laptop.on("message", (message) => heard.push(message.message));
  laptop.connect();
  await until(laptop, "message", () => heard.length > 0);
  laptop.socket.io.engine.close();
  await until(laptop, "status", () => laptop.status !== "online");
  await online(laptop);
  await phone.sendMessage(target, "second");
  await until(laptop, "message", () => heard.length > 1);

  expect(heard).toEqual([{ say: "later" }, "second"]);
});

test("a client moves to another node when its own is killed", async () => {
  const one = await serve();
  const { token } = await one.register();
  const secret = (await import("node:fs")).readFileSync(`${one.folder}/jwt-secret`, "utf8").trim();
  expect(secret.length).toBeGreaterThan(31);
  const two = await serve({}, one.folder);
  // As a load balancer would: the address stays, the node behind it changes.
  const phone = open(one, token, "Phone");
  await phone.updateSession("n", 1);
  await one.kill();
  const port = new URL(one.url).port;
  const write = phone.updateSession("n", 2);
  await until(phone, "status", () => phone.status === "connecting");
  await two.kill();
  const moved = await serve({ PORT: port }, one.folder);
  await write;

  expect((await moved.session(token)).sessionData.n).toBe(2);
});

test("a token that ends is renewed without losing the connection", async () => {
  const server = await serve({ TOKEN_TTL_SECONDS: "3" });
  let { refreshToken } = await server.register();
  let asked = 0;
  const source = async () => {
    asked += 1;
    const answer = await server.ask("POST", "/api/auth/refresh", { refreshToken });
    refreshToken = answer.refreshToken;
    return answer.token as string;
  };
  const phone = open(server, source, "Phone", { scope: "ann" });
  const statuses: string[] = [];
  phone.on("status", (status) => statuses.push(status));
  await online(phone);
  const atFirst = asked;
  // Tokens that live for less than the minute of warning are warned of at once, each one anew.
  let warnings = 0;
  await new Promise<void>((resolve) =>
    phone.socket.on("auth-expiring", () => {
      warnings += 1;
      if (warnings === 3) resolve();
    }),
  );

  await phone.updateSession("n", 1);
  expect(asked).toBeGreaterThanOrEqual(atFirst + 3);
  expect(statuses).toEqual(["online"]);
});

test("a device that is revoked stops and says why", async () => {
  const server = await serve();
  const { token } = await server.register();
  const phone = open(server, token, "Phone");
  const laptop = open(server, token, "Laptop");
  await Promise.all([online(phone), online(laptop)]);

  await phone.revokeDevice(laptop.deviceId as string);
  await until(laptop, "status", () => laptop.status === "refused");

  expect(["device_revoked", "unauthorized"]).toContain(laptop.trouble?.code);
  expect(phone.devices.map((device) => device.name)).toEqual(["Phone"]);
});

test("a bad token is refused for good, and a fresh one lets the client in", async () => {
  const server = await serve();
  const { token } = await server.register();
  const bad = open(server, "no.token.at-all", "Phone");
  await until(bad, "status", () => bad.status === "refused");
  expect(bad.trouble?.code).toBe("unauthorized");

  const tokens = ["no.token.at-all", token];
  const second = open(server, () => tokens.shift() ?? token, "Phone", { scope: "ann" });
  await online(second);
});
