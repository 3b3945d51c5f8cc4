// The Node.js server that Tandem replaces, as its README describes it: REST accounts with JWT, Socket.IO
// with one room a user, better-sqlite3 in WAL mode, Redis as session cache and as adapter between nodes.
// It exists to be measured beside Tandem, by `tandem-load compare`; it leaves out what costs nothing at run time.
//
// Settings: PORT, JWT_SECRET, BCRYPT_COST, DATABASE (file), SYNCHRONOUS (NORMAL as replaced, or FULL),
// REDIS_URL (unset: one node, no cache), ADAPTER (classic or sharded).
'use strict';

const { createServer } = require('node:http');
const { randomUUID } = require('node:crypto');
const bcrypt = require('bcryptjs');
const Database = require('better-sqlite3');
const express = require('express');
const jwt = require('jsonwebtoken');
const { Server } = require('socket.io');

const settings = {
  port: Number(process.env.PORT ?? 3001),
  secret: process.env.JWT_SECRET ?? 'only-for-measurements',
  bcryptCost: Number(process.env.BCRYPT_COST ?? 10),
  database: process.env.DATABASE ?? 'node-seed.db',
  synchronous: process.env.SYNCHRONOUS === 'FULL' ? 'FULL' : 'NORMAL',
  redisUrl: process.env.REDIS_URL,
  adapter: process.env.ADAPTER ?? 'classic',
};

/** Opens the database with the replaced server's three tables and returns its prepared statements. */
function openStore({ database, synchronous }) {
  const db = new Database(database);
  db.pragma('busy_timeout = 10000'); // first: several nodes of one cluster open the file at once
  db.pragma('journal_mode = WAL');
  db.pragma(`synchronous = ${synchronous}`);
  db.exec(`
    CREATE TABLE IF NOT EXISTS users (
      id TEXT PRIMARY KEY, email TEXT NOT NULL UNIQUE, password_hash TEXT NOT NULL,
      created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS devices (
      id TEXT PRIMARY KEY, user_id TEXT NOT NULL, name TEXT, type TEXT,
      last_seen INTEGER NOT NULL, metadata TEXT);
    CREATE TABLE IF NOT EXISTS sessions (
      id TEXT PRIMARY KEY, user_id TEXT NOT NULL, device_id TEXT, data TEXT NOT NULL,
      created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL);
    CREATE INDEX IF NOT EXISTS devices_by_user ON devices (user_id);
    CREATE INDEX IF NOT EXISTS sessions_by_user ON sessions (user_id);`);
  return {
    addUser: db.prepare('INSERT INTO users VALUES (@id, @email, @hash, @now, @now)'),
    userByEmail: db.prepare('SELECT * FROM users WHERE email = ?'),
    addDevice: db.prepare('INSERT INTO devices VALUES (@id, @userId, @name, @type, @now, @metadata)'),
    devicesOf: db.prepare('SELECT * FROM devices WHERE user_id = ?'),
    seen: db.prepare('UPDATE devices SET last_seen = ? WHERE id = ?'),
    sessionsOf: db.prepare('SELECT id, data FROM sessions WHERE user_id = ?'),
    putSession: db.prepare(`
      INSERT INTO sessions VALUES (@id, @userId, @deviceId, @data, @now, @now)
      ON CONFLICT (id) DO UPDATE SET
        data = excluded.data, device_id = excluded.device_id, updated_at = excluded.updated_at`),
  };
}

/** A user's session as `{sessionKey: state}`; row ids are `user:sessionKey`. */
function readSession(store, userId) {
  const session = {};
  for (const row of store.sessionsOf.iterate(userId)) {
    session[row.id.slice(userId.length + 1)] = JSON.parse(row.data);
  }
  return session;
}

/** The REST half. */
function restApi(store) {
  const issueToken = (user) =>
    jwt.sign({ userId: user.id, email: user.email }, settings.secret, { expiresIn: '7d' });

  const requireUser = (req, res, next) => {
    try {
      const [, token] = (req.get('authorization') ?? '').split(' ');
      req.user = jwt.verify(token, settings.secret);
    } catch {
      res.status(401).json({ error: 'unauthorized' });
      return;
    }
    next();
  };

  const api = express();
  api.use(express.json());
  api.get('/api/health', (_req, res) => res.json({ status: 'ok' }));

  api.post('/api/auth/register', async (req, res) => {
    const user = { id: randomUUID(), email: req.body.email };
    const hash = await bcrypt.hash(req.body.password, settings.bcryptCost);
    try {
      store.addUser.run({ id: user.id, email: user.email, hash, now: Date.now() });
    } catch (error) {
      if (error.code !== 'SQLITE_CONSTRAINT_UNIQUE') throw error;
      res.status(409).json({ error: 'email taken' });
      return;
    }
    res.status(201).json({ token: issueToken(user), user });
  });

  api.post('/api/auth/login', async (req, res) => {
    const row = store.userByEmail.get(req.body.email);
    if (!row || !(await bcrypt.compare(req.body.password, row.password_hash))) {
      res.status(401).json({ error: 'invalid credentials' });
      return;
    }
    const user = { id: row.id, email: row.email };
    res.json({ token: issueToken(user), user });
  });

  api.get('/api/devices', requireUser, (req, res) =>
    res.json({ devices: store.devicesOf.all(req.user.userId) }));
  api.get('/api/session', requireUser, (req, res) =>
    res.json({ sessionData: readSession(store, req.user.userId) }));
  return api;
}

/** Connects to Redis and puts the chosen adapter under `io`; returns the session cache, or null on one node. */
async function joinCluster(io) {
  if (!settings.redisUrl) return null;
  const { createClient } = require('redis');
  const { createAdapter, createShardedAdapter } = require('@socket.io/redis-adapter');
  const publisher = createClient({ url: settings.redisUrl });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  if (settings.adapter === 'sharded') {
    io.adapter(createShardedAdapter(publisher, subscriber, { subscriptionMode: 'dynamic-private' }));
  } else {
    io.adapter(createAdapter(publisher, subscriber));
  }
  return publisher;
}

/** What one connected device says and hears. */
function serveDevice(store, cache, socket) {
  const userId = socket.data.userId;
  const deviceId = randomUUID();
  const userRoom = `user:${userId}`;
  let deviceInfo = {};
  try {
    deviceInfo = JSON.parse(socket.handshake.query.deviceInfo ?? '{}');
  } catch {
    // The replaced server took a device without a readable description too.
  }
  store.addDevice.run({
    id: deviceId,
    userId,
    name: deviceInfo.name ?? '',
    type: deviceInfo.type ?? 'unknown',
    now: Date.now(),
    metadata: JSON.stringify(deviceInfo),
  });
  socket.join([userRoom, `device:${deviceId}`]);
  socket.emit('session-restored', { sessionData: readSession(store, userId), deviceId });
  socket.to(userRoom).emit('device-connected', { deviceId, deviceInfo });

  socket.on('session-update', ({ sessionKey, state }, ack) => {
    const data = JSON.stringify(state);
    store.putSession.run({ id: `${userId}:${sessionKey}`, userId, deviceId, data, now: Date.now() });
    cache?.hSet(`session:${userId}`, sessionKey, data).catch((error) => console.error('cache:', error.message));
    socket.to(userRoom).emit('session-updated', { sessionKey, state, deviceId });
    ack?.({ ok: true });
  });
  socket.on('realtime-event', ({ type, payload }, ack) => {
    socket.to(userRoom).emit('realtime-event', { type, payload, sourceDeviceId: deviceId });
    ack?.({ ok: true });
  });
  socket.on('device-message', ({ targetDeviceId, message }, ack) => {
    socket.to(`device:${targetDeviceId}`).emit('device-message', { message, sourceDeviceId: deviceId });
    ack?.({ ok: true });
  });
  socket.on('disconnect', () => {
    store.seen.run(Date.now(), deviceId);
    socket.to(userRoom).emit('device-disconnected', { deviceId });
  });
}

async function main() {
  const store = openStore(settings);
  const server = createServer(restApi(store));
  const io = new Server(server, { cors: { origin: '*' } });
  const cache = await joinCluster(io);
  io.use((socket, next) => {
    try {
      socket.data.userId = jwt.verify(socket.handshake.auth.token, settings.secret).userId;
      next();
    } catch {
      next(new Error('unauthorized'));
    }
  });
  io.on('connection', (socket) => serveDevice(store, cache, socket));
  server.listen(settings.port, '127.0.0.1');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
