// The stock socket.io-client behind JSON lines, one process for all devices of a test process.
//
// A line in is a command: {id, op, socket, ...}. Lines out are its one answer, {re: id, ...}, and what the
// sockets see, in the order they see it: {socket, name, args} for events of the server, and for the client's own
// news names that begin with "$": $connect, $connect_error, $disconnect, $reconnect_attempt, $packet.
// The process ends when its standard input does, so it cannot outlive the test process.
'use strict';

const readline = require('node:readline');
const { io } = require('socket.io-client');

const sockets = new Map();

// Lines written in one turn leave in one write: hundreds of events arrive at once.
let pending = [];
function say(line) {
  if (pending.length === 0) setImmediate(flush);
  pending.push(encode(line));
}
// Half a surrogate pair is JSON to JavaScript, and to nobody who reads UTF-8.
function encode(line) {
  const text = JSON.stringify(line);
  if (!/\\ud[89a-f]/.test(text)) return text;
  return JSON.stringify(line, (_key, value) => (typeof value === 'string' ? value.toWellFormed() : value));
}
function flush() {
  const lines = pending;
  pending = [];
  process.stdout.write(lines.join('\n') + '\n');
}

function watch(name, socket) {
  const tell = (event, ...args) => say({ socket: name, name: event, args });
  socket.onAny((event, ...args) => tell(event, ...args));
  socket.on('connect', () => tell('$connect', { transport: socket.io.engine.transport.name, recovered: socket.recovered }));
  socket.on('connect_error', (error) => tell('$connect_error', {
    message: error.message,
    type: error.type ?? null, // set for transport failures, absent for the server's CONNECT_ERROR
    retries: socket.active, // false: the client has given up for good
  }));
  socket.on('disconnect', (reason) => tell('$disconnect', { reason, retries: socket.active }));
  socket.io.on('reconnect_attempt', (attempt) => tell('$reconnect_attempt', { attempt }));
  socket.io.on('reconnect', (attempt) => tell('$reconnect', { attempt }));
}

// An abrupt end, as a pulled cable would look to the client: no `41`, no WebSocket close frame.
function breakTransport(socket) {
  const transport = socket.io.engine?.transport;
  if (transport?.ws?.terminate) transport.ws.terminate();
  else socket.io.engine?.onClose?.('transport error');
}

const commands = {
  connect({ socket: name, url, options }) {
    const socket = io(url, options);
    sockets.set(name, socket);
    watch(name, socket);
    return {};
  },
  emit({ event, args }, socket) {
    socket.emit(event, ...args);
    return {};
  },
  emitAck({ id, event, args, timeoutMs }, socket) {
    const answer = (error, ...reply) => say(error
      ? { re: id, error: error.message || String(error) }
      : { re: id, reply });
    // With `retries` the client owns the waiting (ackTimeout); otherwise the command's timeout does.
    if (socket._opts.retries) socket.emit(event, ...args, answer);
    else socket.timeout(timeoutMs).emit(event, ...args, answer);
    return null;
  },
  // Many emits with acks in one turn; answered once all are settled, in the order they were sent.
  async emitAckAll({ id, events, timeoutMs }, socket) {
    const replies = await Promise.all(events.map(([event, ...args]) => socket
      .timeout(timeoutMs).emitWithAck(event, ...args)
      .then((reply) => ({ reply }), (error) => ({ error: error.message }))));
    say({ re: id, replies });
    return null;
  },
  reconnect(_command, socket) {
    socket.connect();
    return {};
  },
  setAuth({ auth }, socket) {
    socket.auth = auth;
    return {};
  },
  disconnect(_command, socket) {
    socket.disconnect();
    return {};
  },
  closeEngine(_command, socket) {
    socket.io.engine.close();
    return {};
  },
  breakTransport(_command, socket) {
    breakTransport(socket);
    return {};
  },
  inspect(_command, socket) {
    const engine = socket.io.engine;
    return {
      connected: socket.connected,
      active: socket.active,
      transport: engine?.transport?.name ?? null,
      sendBuffer: socket.sendBuffer.length,
      receiveBuffer: socket.receiveBuffer.length,
      queued: socket._queue?.length ?? 0,
    };
  },
  // The test is over: say nothing more, close, forget.
  drop({ socket: name }, socket) {
    socket.offAny();
    socket.off();
    socket.io.off();
    socket.io.reconnection(false);
    socket.disconnect();
    breakTransport(socket);
    sockets.delete(name);
    return {};
  },
};

readline.createInterface({ input: process.stdin }).on('line', async (line) => {
  const command = JSON.parse(line);
  try {
    const socket = sockets.get(command.socket);
    if (!socket && command.op !== 'connect') throw new Error(`no socket ${command.socket}`);
    const answer = await commands[command.op](command, socket);
    if (answer !== null) say({ re: command.id, ...answer });
  } catch (error) {
    say({ re: command.id, error: `driver: ${error.stack || error}` });
  }
}).on('close', () => process.exit(0));
