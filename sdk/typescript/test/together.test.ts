// The stock socket.io-client, the stock python-socketio and this client as one user's devices on one server: all hear
// each other. ./check puts the Python of tools/tests.txt on PATH.
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { type Socket, io } from "socket.io-client";
import { afterEach, expect, test } from "vitest";

import type { ClientToServerEvents, ServerToClientEvents } from "../src/index.js";
import { type Server, serve } from "../../../tests/support/server.mjs";
import { closeAll, open } from "./device.js";

/** A device as this test sees it, whatever it is made of. */
interface Device {
  id: string;
  heard: { event: string; body: any }[];
  /** Emits an event and returns its acknowledgement. */
  ask(event: string, body: unknown): Promise<any>;
}

const sockets: Socket[] = [];
const processes: ChildProcess[] = [];

afterEach(async () => {
  for (const socket of sockets.splice(0)) socket.disconnect();
  for (const child of processes.splice(0)) child.kill();
  await closeAll();
});

async function stock(server: Server, token: string): Promise<Device> {
  const auth = { token, deviceInfo: { name: "Stock", type: "test" } };
  const socket: Socket<ServerToClientEvents, ClientToServerEvents> = io(server.url, { auth, multiplex: false });
  sockets.push(socket);
  const heard: Device["heard"] = [];
  socket.onAny((event, body) => heard.push({ event, body }));
  const { deviceId } = await new Promise<{ deviceId: string }>((resolve) => socket.once("session-restored", resolve));
  return { id: deviceId, heard, ask: (event, body) => socket.emitWithAck(event as "session-update", body as never) };
}

async function python(server: Server, token: string): Promise<Device> {
  const script = new URL("device.py", import.meta.url).pathname;
  const child = spawn("python", [script, server.url, token, "Python"], { stdio: ["pipe", "pipe", "inherit"] });
  processes.push(child);
  const heard: Device["heard"] = [];
  const answers: ((ack: unknown) => void)[] = [];
  const id = new Promise<string>((resolve, reject) => {
    child.on("exit", (code) => reject(new Error(`python ended with ${code}`)));
    createInterface(child.stdout!).on("line", (line) => {
      const [event, body] = JSON.parse(line);
      if (event === "ack") return answers.shift()?.(body);
      if (event === "session-restored") resolve(body.deviceId);
      heard.push({ event, body });
    });
  });
  return {
    id: await id,
    heard,
    ask: (event, body) =>
      new Promise((resolve) => {
        answers.push(resolve);
        child.stdin!.write(`${JSON.stringify([event, body])}\n`);
      }),
  };
}

async function ours(server: Server, token: string): Promise<Device> {
  const sync = open(server, token, "Ours");
  const heard: Device["heard"] = [];
  sync.on("change", ({ key, state, from }) => {
    if (from === "remote") heard.push({ event: "session-updated", body: { sessionKey: key, state } });
  });
  sync.on("message", (body) => heard.push({ event: "device-message", body }));
  sync.on("realtime", (body) => heard.push({ event: "realtime-event", body }));
  await new Promise((resolve) => sync.on("restored", resolve));
  const ask = async (event: string, body: any) => {
    if (event === "session-update") return { ok: true, ...(await sync.updateSession(body.sessionKey, body.state)) };
    if (event === "device-message") return { ok: true, ...(await sync.sendMessage(body.targetDeviceId, body.message)) };
    sync.sendRealtimeEvent(body.type, body.payload);
    return { ok: true };
  };
  return { id: sync.deviceId as string, heard, ask };
}

test("the stock client, python-socketio and this client hear each other's updates, messages and events", async () => {
  const server = await serve();
  const { token } = await server.register();
  const devices = await Promise.all([stock(server, token), python(server, token), ours(server, token)]);

  for (const from of devices) {
    const others = devices.filter((device) => device !== from);
    const state = { from: from.id };
    expect(await from.ask("session-update", { sessionKey: "note", state })).toMatchObject({ ok: true });
    const sent = await from.ask("device-message", { targetDeviceId: "*", message: `from ${from.id}` });
    expect(sent).toMatchObject({ ok: true, status: "delivered" });
    expect(await from.ask("realtime-event", { type: "cursor", payload: from.id })).toMatchObject({ ok: true });
    for (const device of others) {
      const told = (event: string, body: object) =>
        expect.poll(() => device.heard, { timeout: 10_000 }).toContainEqual({ event, body: expect.objectContaining(body) });
      await told("session-updated", { sessionKey: "note", state });
      await told("device-message", { message: `from ${from.id}`, sourceDeviceId: from.id });
      await told("realtime-event", { type: "cursor", payload: from.id, sourceDeviceId: from.id });
    }
  }
  // Each heard each other once, and nobody themselves.
  for (const device of devices) {
    const messages = device.heard.filter(({ event }) => event === "device-message");
    expect(messages.map(({ body }) => body.sourceDeviceId).sort()).toEqual(
      devices.filter((other) => other !== device).map((other) => other.id).sort(),
    );
  }
});
