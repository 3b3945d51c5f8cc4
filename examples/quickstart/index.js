// Two devices of one user, in step. Run a node (`cargo run --release`), then:
//   npm install && npm start
const { io } = require('socket.io-client');

const url = process.argv[2] || 'http://localhost:3001';

async function account() {
  const response = await fetch(`${url}/api/auth/register`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ email: `ann-${Date.now()}@example.com`, password: 'correct horse' }),
  });
  if (!response.ok) throw new Error(`register: ${response.status} ${await response.text()}`);
  return response.json();
}

// A device is whatever connects with the user's token and says what it is.
function device(token, name, type) {
  const socket = io(url, { auth: { token }, query: { deviceInfo: JSON.stringify({ name, type }) } });
  socket.on('connect_error', (error) => console.error(`${name}: ${error.message}`));
  return new Promise((resolve) => {
    socket.once('session-restored', ({ deviceId, sessionData }) => {
      console.log(`${name} is ${deviceId} and starts with`, sessionData);
      resolve(socket);
    });
  });
}

async function main() {
  const { token } = await account();
  const laptop = await device(token, 'Laptop', 'desktop');
  laptop.on('device-connected', ({ deviceInfo }) => console.log('laptop sees', deviceInfo.name));
  const phone = await device(token, 'Phone', 'mobile');

  const seen = new Promise((resolve) => phone.once('session-updated', resolve));
  // The acknowledgement comes once the change is on disk.
  const ack = await laptop.emitWithAck('session-update', {
    sessionKey: 'editor',
    state: { text: 'Hello World', cursor: 5 },
  });
  console.log('laptop wrote version', ack.version);
  const { sessionKey, state } = await seen;
  console.log('phone sees', sessionKey, state);

  laptop.disconnect();
  phone.disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
