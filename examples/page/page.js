// One device with the stock socket.io-client: a note and a counter that all windows of one user share.
"use strict";

const server = new URLSearchParams(location.search).get("server") || "http://localhost:3001";
const element = (id) => document.getElementById(id);
const note = element("note");
const devices = new Map();
/** The version of the note that this page shows. */
let version = 0;

async function post(path, body) {
  const answer = await fetch(server + path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const said = await answer.json();
  return answer.ok ? said : Promise.reject(said.error);
}

element("enter").addEventListener("submit", async (event) => {
  event.preventDefault();
  const account = Object.fromEntries(new FormData(event.target));
  try {
    const { token } = await post("/api/auth/register", account).catch((error) => {
      if (error.code !== "email_taken") throw error;
      return post("/api/auth/login", account);
    });
    connect(token);
  } catch (error) {
    element("status").textContent = error.message;
  }
});

function connect(token) {
  const socket = io(server, { auth: { token, deviceInfo: { name: "Page", type: "browser" } } });
  element("enter").hidden = true;
  element("shared").hidden = false;

  // First everything, then what changes. After a lost connection it starts with everything again.
  socket.on("session-restored", (restored) => {
    element("status").textContent = "Connected";
    version = 0;
    showNote(restored.sessionData.note, restored.versions.note ?? 0);
    showLikes(restored.sessionData.likes);
    devices.clear();
    for (const device of restored.devices) if (device.online) devices.set(device.id, device.name);
    showDevices();
  });
  socket.on("session-updated", (updated) => {
    if (updated.sessionKey === "note") showNote(updated.state, updated.version);
    if (updated.sessionKey === "likes") showLikes(updated.state);
  });
  socket.on("device-connected", ({ deviceId, deviceInfo }) => {
    devices.set(deviceId, deviceInfo.name);
    showDevices();
  });
  socket.on("device-disconnected", ({ deviceId }) => {
    devices.delete(deviceId);
    showDevices();
  });
  socket.on("connect_error", (error) => (element("status").textContent = error.message));
  socket.on("disconnect", () => (element("status").textContent = "Not connected; it comes back by itself"));

  note.addEventListener("input", () => {
    const update = { sessionKey: "note", state: { text: note.value } };
    socket.emit("session-update", update, (ack) => {
      if (ack.ok) version = Math.max(version, ack.version);
      else element("status").textContent = ack.error.message;
    });
  });
  // Counted by the server, so that two who like at once are two.
  element("like").addEventListener("click", async () => {
    const ops = [{ op: "inc", path: "/n", value: 1 }];
    await socket.emitWithAck("session-update", { sessionKey: "likes", ops, opId: randomId() });
    const { sessionData } = await socket.emitWithAck("session-get", { keys: ["likes"] });
    showLikes(sessionData.likes);
  });
}

function showNote(state, itsVersion) {
  if (itsVersion < version) return;
  version = itsVersion;
  const text = state ? state.text : "";
  if (note.value !== text) note.value = text;
}

function showLikes(state) {
  element("likes").textContent = state ? state.n : 0;
}

function showDevices() {
  const items = [...devices.values()].map((name) => Object.assign(document.createElement("li"), { textContent: name }));
  element("devices").replaceChildren(...items);
}

/** Says which write it is, so that one that is sent again counts once. */
function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
