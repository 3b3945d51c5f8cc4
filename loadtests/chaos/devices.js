// The devices of a chaos run: stock socket.io-client in one process, so that one clock orders what all of them saw.
//
//     node devices.js URL SECONDS SEED USERS DEVICES HISTORY
//
// Each device writes, counts, compares-and-sets, deletes and sends messages at random until the time is over or a line
// "settle" comes in; then it waits for its answers, and all wait until every device shows what GET /api/session says.
// What happened goes to HISTORY as JSON Lines (loadtests/src/check/history.rs); lines out are what the run looks like:
// {"second", "acks", "p50", "p99", "online"}, and at the end {"converged", "ms"}. "storm" on standard input breaks every
// transport at once.
'use strict';

const fs = require('node:fs');
const readline = require('node:readline');
const { io } = require('socket.io-client');

const [url, seconds, seed, users, devicesEach, historyPath] = process.argv.slice(2);
const PASSWORD = 'chaos and order';
/** Operations of one device under way at a time. */
const UNDER_WAY = 4;
const PAUSE_MS = 60;
/** An answer that takes longer is asked for again, under the same id. */
const ANSWER_MS = 4000;
const SETTLE_MS = 60_000;

const history = fs.createWriteStream(historyPath);
const began = performance.now();
const now = () => Math.round(performance.now() - began);
const record = (line) => history.write(`${JSON.stringify({ ...line, at: now() })}\n`);
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// mulberry32, by its author in the public domain: the same seed gives the same choices.
function randomFrom(start) {
  let a = start >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

let writing = true;
let latencies = [];
const all = [];
/** Messages that were accepted and have not arrived. */
const underWay = new Set();
const arrived = new Set();

async function ask(method, path, token, body) {
  const answer = await fetch(url + path, {
    method,
    headers: { ...(body ? { 'content-type': 'application/json' } : {}), ...(token ? { authorization: `Bearer ${token}` } : {}) },
    ...(body ? { body: JSON.stringify(body) } : {}),
    signal: AbortSignal.timeout(5000),
  });
  if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

/** While faults are made, REST is tried again. */
async function surely(...call) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await ask(...call);
    } catch (error) {
      if (tries > 200) throw error;
      await sleep(100);
    }
  }
}

class Device {
  constructor(user, token, number, random) {
    Object.assign(this, { user, token, random, name: `${user}-${number}` });
    this.states = new Map(); // key -> { text, version, seq }
    this.open = 0;
    this.others = [];
    this.messages = Promise.resolve();
    this.ids = 0;
    // As a stock client: the id that it was given is its own over every reconnect.
    this.socket = io(url, {
      multiplex: false,
      auth: (give) => give({ token, deviceId: this.id, messageAcks: true, deviceInfo: { name: this.name, type: 'chaos' }, since: this.position }),
      reconnectionDelay: 50,
      reconnectionDelayMax: 500,
      timeout: 4000,
      transports: number % 3 === 0 ? ['polling', 'websocket'] : ['websocket'],
    });
    this.isThere = new Promise((resolve) => this.socket.once('session-restored', resolve));
    this.socket.on('session-restored', (body) => this.restored(body));
    this.socket.on('session-updated', (body) => {
      const state = body.deleted ? null : JSON.stringify(body.state);
      record({ kind: 'seen', user, device: this.name, key: body.sessionKey, version: body.version, seq: body.seq, state });
      if (this.position) this.position = { ...this.position, seq: Math.max(this.position.seq, body.seq) };
      this.take(body.sessionKey, state, body.version, body.seq);
    });
    this.socket.on('device-message', (body) => {
      record({ kind: 'got', id: body.messageId, user, device: this.name });
      arrived.add(body.messageId);
      underWay.delete(body.messageId);
      this.socket.emit('device-message-ack', { messageId: body.messageId });
    });
    this.socket.on('connect_error', (error) => {
      // Without a `context` it is the server's word, after which a stock client stays away.
      if (!this.socket.active) say({ trouble: `${this.name} was refused: ${error.message}` });
    });
    this.socket.on('disconnect', (reason) => {
      if (reason === 'io server disconnect') say({ trouble: `${this.name} was sent away` });
    });
  }

  restored(body) {
    const full = body.mode === 'full';
    if (this.id && this.id !== body.deviceId) say({ trouble: `${this.name} became another device` });
    this.id = body.deviceId;
    this.position = { epoch: body.epoch, seq: body.seq };
    const states = Object.fromEntries(Object.entries(body.sessionData).map(([key, state]) => [key, JSON.stringify(state)]));
    record({ kind: 'restored', user: this.user, device: this.name, seq: body.seq, versions: body.versions, states, full });
    if (full) {
      for (const key of this.states.keys()) if (!(key in states)) this.take(key, null, 0, body.seq);
    }
    for (const [key, text] of Object.entries(states)) this.take(key, text, body.versions[key], body.seq);
    for (const key of body.removed) this.take(key, null, 0, body.seq);
  }

  /** Of each key what has the highest seq (docs/PROTOCOL.md, promise 2). */
  take(key, text, version, seq) {
    const known = this.states.get(key);
    if (!known || known.seq <= seq) this.states.set(key, { text, version, seq });
  }

  shown() {
    return Object.fromEntries([...this.states].filter(([, { text }]) => text !== null).map(([key, { text }]) => [key, text]).sort());
  }

  newId() {
    this.ids += 1;
    return `${this.name}-${this.ids}`;
  }

  async run() {
    while (writing) {
      await sleep(PAUSE_MS * (0.5 + this.random()));
      if (this.open >= UNDER_WAY || !writing) continue;
      if (this.random() < 0.12) this.message();
      else if (this.random() < 0.15) this.socket.emit('realtime-event', { type: 'noise', payload: { u: this.user } });
      else void this.write();
    }
  }

  async write() {
    const { user, random } = this;
    const id = this.newId();
    const dice = random();
    let [event, op, key, value, base, payload] = ['session-update', 'state', `k${Math.floor(random() * 6)}`, null, null, {}];
    if (dice < 0.3) {
      [op, key, payload] = ['inc', `count${Math.floor(random() * 2)}`, { ops: [{ op: 'inc', path: '/n', value: 1 }] }];
    } else if (dice < 0.45) {
      [op, key, payload] = ['patch', `p${Math.floor(random() * 2)}`, { patch: { u: user, [this.name]: id } }];
    } else if (dice < 0.52) {
      [event, op, payload] = ['session-delete', 'delete', {}];
    } else {
      const state = { u: user, id, filler: 'x'.repeat(Math.floor(random() * 400)) };
      value = JSON.stringify(state);
      payload = { state };
      if (dice < 0.7) {
        base = this.states.get(key)?.text ? this.states.get(key).version : 0;
        payload.baseVersion = base;
      }
    }
    record({ kind: 'write', id, user, device: this.name, key, op, value, base });
    this.open += 1;
    const sent = now();
    const ack = await this.until(event, { sessionKey: key, ...payload, opId: id });
    this.open -= 1;
    latencies.push(now() - sent);
    if (!ack.ok) return record({ kind: 'refused', id, code: ack.error.code });
    const text = op === 'delete' ? null : 'state' in ack ? JSON.stringify(ack.state) : value;
    record({ kind: 'ack', id, version: ack.version, seq: ack.seq, ...(ack.duplicate ? { duplicate: true } : {}) });
    // What a repeated patch came to is not in its answer: a session-get has it.
    if (text === null && op !== 'delete') await this.reload(key);
    else this.take(key, text, ack.version, ack.seq);
  }

  async reload(key) {
    const ack = await this.until('session-get', { keys: [key] });
    if (!ack.ok) return;
    const has = key in ack.sessionData;
    this.take(key, has ? JSON.stringify(ack.sessionData[key]) : null, has ? ack.versions[key] : 0, ack.seq);
  }

  /** Messages of one device go one after the other. */
  message() {
    const to = this.others[Math.floor(this.random() * this.others.length)];
    if (!to.id) return;
    this.open += 1;
    this.messages = this.messages.then(async () => {
      const id = this.newId();
      record({ kind: 'sent', id, user: this.user, from: this.name, to: to.name });
      const ack = await this.until('device-message', { targetDeviceId: to.id, message: { u: this.user }, messageId: id });
      this.open -= 1;
      if (ack.ok) {
        record({ kind: 'ack', id });
        if (!arrived.has(id)) underWay.add(id);
      }
      else record({ kind: 'refused', id, code: ack.error.code });
    });
  }

  /** Asks under the same id until there is an answer that is one. */
  async until(event, payload) {
    for (;;) {
      try {
        const ack = await this.socket.timeout(ANSWER_MS).emitWithAck(event, payload);
        if (ack.ok || !ack.error.retryable) return ack;
        await sleep(ack.error.retryAfterMs ?? 100);
      } catch {
        await sleep(20);
      }
    }
  }
}

async function settle() {
  writing = false;
  const start = now();
  const deadline = start + SETTLE_MS;
  let differs = [];
  while (now() < deadline) {
    await sleep(50);
    const late = all.filter((device) => device.open > 0 || !device.socket.connected);
    differs = late.map((device) => `${device.name} (${device.open} unanswered, ${device.socket.connected ? 'online' : 'offline'})`);
    if (late.length > 0) continue;
    // One that nobody confirmed is kept, and found by the regular ask.
    if (underWay.size > 0) {
      differs = [`${underWay.size} messages are under way`];
      continue;
    }
    for (const [user, token] of tokens) {
      const session = await surely('GET', '/api/session', token);
      const stored = JSON.stringify(Object.entries(session.sessionData).map(([key, state]) => [key, JSON.stringify(state)]).sort());
      for (const device of all.filter((device) => device.user === user)) {
        if (JSON.stringify(Object.entries(device.shown()).sort()) !== stored) differs.push(device.name);
      }
    }
    if (differs.length === 0) break;
  }
  return { converged: differs.length === 0 && now() < deadline, ms: now() - start, differs };
}

const tokens = new Map();

async function dump() {
  for (const device of all) record({ kind: 'final', user: device.user, device: device.name, states: device.shown() });
  for (const [user, token] of tokens) {
    const session = await surely('GET', '/api/session', token);
    const keys = new Set([...all.filter((device) => device.user === user).flatMap((device) => [...device.states.keys()])]);
    const kept = [];
    for (const key of keys) {
      let listed;
      try {
        listed = await ask('GET', `/api/session/${encodeURIComponent(key)}/history`, token);
      } catch {
        continue; // It never was.
      }
      for (const { version, seq, state, deleted } of listed.versions) {
        kept.push({ key, version, seq, state: deleted ? null : JSON.stringify(state) });
      }
    }
    const states = Object.fromEntries(Object.entries(session.sessionData).map(([key, state]) => [key, JSON.stringify(state)]));
    record({ kind: 'store', user, seq: session.seq, states, versions: session.versions, history: kept });
  }
  await new Promise((resolve) => history.end(resolve));
}

async function main() {
  let enough;
  const over = new Promise((resolve) => {
    enough = resolve;
  });
  readline.createInterface({ input: process.stdin }).on('line', (line) => {
    if (line === 'settle') enough();
    if (line === 'storm') for (const { socket } of all) socket.io.engine?.transport?.ws?.terminate?.();
  }).on('close', () => process.exit(1));
  for (let number = 0; number < Number(users); number += 1) {
    const user = `user${number}`;
    const email = `${user}-${seed}-${process.pid}@example.test`;
    const { token } = await surely('POST', '/api/auth/register', undefined, { email, password: PASSWORD });
    tokens.set(user, token);
    const own = Array.from({ length: Number(devicesEach) }, (_, index) => new Device(user, token, index, randomFrom(Number(seed) * 1009 + number * 31 + index)));
    for (const device of own) device.others = own.filter((other) => other !== device);
    all.push(...own);
  }
  await Promise.all(all.map((device) => device.isThere));
  say({ ready: all.length });
  const perSecond = setInterval(() => {
    const sorted = latencies.sort((a, b) => a - b);
    latencies = [];
    const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? null;
    say({ second: now() / 1000, acks: sorted.length, p50: at(0.5), p99: at(0.99), online: all.filter(({ socket }) => socket.connected).length });
  }, 1000);
  const running = all.map((device) => device.run());
  setTimeout(enough, Number(seconds) * 1000 + 60_000).unref();
  await over;
  writing = false;
  await Promise.all(running);
  const settled = await settle();
  clearInterval(perSecond);
  await dump();
  say(settled);
  process.exit(0);
}

main().catch((error) => {
  say({ trouble: String(error.stack || error), fatal: true });
  process.exit(1);
});
