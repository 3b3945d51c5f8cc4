// The person's devices: who is online, their names, and ending one.
import { useState } from "preact/hooks";
import { call } from "../core/account";
import { failureOf, inWords } from "../core/failure";
import type { Device } from "../core/link";
import { useRegularly } from "../core/regularly";

const ask = async () => (await call<{ devices: Device[] }>("GET", "/api/devices")).body.devices;

export function Devices() {
  const { answer: devices, load, trouble, setTrouble } = useRegularly(ask);
  const act = async (work: () => Promise<unknown>) => {
    try {
      await work();
      await load();
    } catch (thrown) {
      setTrouble(inWords(failureOf(thrown)));
    }
  };
  return (
    <div class="page">
      <h1>Your devices</h1>
      <p>
        Every client that connected with your account, the two of “Try it” among them. A revoked device is logged out
        wherever it is and cannot come back.
      </p>
      <p class="trouble" role="alert">
        {trouble}
      </p>
      {devices === undefined && !trouble && <p class="empty">Loading…</p>}
      {devices?.length === 0 && (
        <p class="empty">
          No devices yet. <a href="#/demo">Open the demo</a>, or connect one with your token.
        </p>
      )}
      <ul class="devices">
        {devices?.map((device) => (
          <DeviceView device={device} act={act} key={device.id} />
        ))}
      </ul>
    </div>
  );
}

function DeviceView({ device, act }: { device: Device; act: (work: () => Promise<unknown>) => Promise<void> }) {
  const [renaming, setRenaming] = useState(false);
  const [sure, setSure] = useState(false);
  const name = device.name || "Unnamed device";
  const path = `/api/devices/${device.id}`;
  async function rename(event: SubmitEvent) {
    event.preventDefault();
    const next = String(new FormData(event.currentTarget as HTMLFormElement).get("name")).trim();
    setRenaming(false);
    await act(() => call("PATCH", path, { body: { name: next } }));
  }
  return (
    <li class="card">
      <div>
        {renaming ? (
          <form class="inline" onSubmit={rename}>
            <input name="name" aria-label="New name" defaultValue={device.name} maxLength={200} autofocus />
            <button type="submit">Save</button>
            <button type="button" onClick={() => setRenaming(false)}>
              Cancel
            </button>
          </form>
        ) : (
          <h2>{name}</h2>
        )}
        <p class="hint">
          {device.type} · {device.online ? <strong class="on">online</strong> : `last seen ${when(device.lastSeen)}`} · known
          since {when(device.createdAt)}
        </p>
      </div>
      <div class="actions">
        {!renaming && (
          <button type="button" onClick={() => setRenaming(true)} aria-label={`Rename ${name}`}>
            Rename
          </button>
        )}
        {sure ? (
          <>
            <button type="button" class="danger" onClick={() => void act(() => call("DELETE", path))}>
              Revoke {name}
            </button>
            <button type="button" onClick={() => setSure(false)}>
              Keep
            </button>
          </>
        ) : (
          <button type="button" onClick={() => setSure(true)} aria-label={`Revoke ${name}…`}>
            Revoke…
          </button>
        )}
      </div>
    </li>
  );
}

function when(time: string | undefined): string {
  return time ? new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) : "never";
}
