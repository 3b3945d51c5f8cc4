// The person's session: its keys, their states and what they were before.
import { useEffect, useState } from "preact/hooks";
import { call } from "../core/account";
import { failureOf, inWords } from "../core/failure";
import { useRegularly } from "../core/regularly";

interface Snapshot {
  sessionData: Record<string, unknown>;
  versions: Record<string, number>;
}

interface Kept {
  version: number;
  state?: unknown;
  deleted?: boolean;
  updatedAt: string;
  deviceId: string | null;
}

const ask = async () => (await call<Snapshot>("GET", "/api/session")).body;
const pathOf = (key: string) => `/api/session/${encodeURIComponent(key)}`;

export function Session() {
  const { answer: snapshot, load, trouble, setTrouble } = useRegularly(ask);
  const [chosen, setChosen] = useState<string | undefined>(undefined);
  const keys = Object.keys(snapshot?.sessionData ?? {}).sort();
  const key = chosen !== undefined && keys.includes(chosen) ? chosen : undefined;
  return (
    <div class="page">
      <h1>Your session</h1>
      <p>What your devices share, key by key. Changes made here reach them at once.</p>
      <p class="trouble" role="alert">
        {trouble}
      </p>
      <div class="browser">
        <section aria-label="Keys">
          <ul class="keys">
            {keys.map((name) => (
              <li key={name}>
                <button type="button" aria-pressed={name === key} onClick={() => setChosen(name)}>
                  <code>{name}</code> <small>version {snapshot?.versions[name]}</small>
                </button>
              </li>
            ))}
          </ul>
          {snapshot && keys.length === 0 && (
            <p class="empty">
              Nothing yet. <a href="#/demo">Try the demo</a>, or add a key.
            </p>
          )}
          <AddKey
            taken={keys}
            done={async (name) => {
              await load();
              setChosen(name);
            }}
            trouble={setTrouble}
          />
        </section>
        {key !== undefined && snapshot ? (
          <KeyView
            name={key}
            state={snapshot.sessionData[key]}
            version={snapshot.versions[key] ?? 0}
            changed={load}
            key={`${key} ${snapshot.versions[key]}`}
          />
        ) : (
          <p class="empty pick">Choose a key to see and edit its state.</p>
        )}
      </div>
    </div>
  );
}

function AddKey(props: { taken: string[]; done: (name: string) => Promise<void>; trouble: (text: string) => void }) {
  async function submit(event: SubmitEvent) {
    event.preventDefault();
    const form = event.currentTarget as HTMLFormElement;
    const name = String(new FormData(form).get("key"));
    try {
      await call("PUT", pathOf(name), { body: {}, headers: { "If-None-Match": "*" } });
      form.reset();
      await props.done(name);
    } catch (thrown) {
      props.trouble(inWords(failureOf(thrown)));
    }
  }
  return (
    <form class="inline" onSubmit={submit}>
      <input name="key" aria-label="New key" placeholder="New key" required maxLength={128} />
      <button type="submit">Add</button>
    </form>
  );
}

function KeyView(props: { name: string; state: unknown; version: number; changed: () => Promise<void> }) {
  const { name, state, version, changed } = props;
  const [text, setText] = useState(JSON.stringify(state, null, 2));
  const [trouble, setTrouble] = useState("");
  const [history, setHistory] = useState<Kept[] | undefined>(undefined);
  const [sure, setSure] = useState(false);
  useEffect(() => {
    call<{ versions: Kept[] }>("GET", `${pathOf(name)}/history`).then(
      ({ body }) => setHistory(body.versions),
      (thrown) => setTrouble(inWords(failureOf(thrown))),
    );
  }, [name]);
  const act = async (work: () => Promise<unknown>) => {
    try {
      await work();
      setTrouble("");
      await changed();
    } catch (thrown) {
      setTrouble(inWords(failureOf(thrown)));
      await changed();
    }
  };
  async function save(event: SubmitEvent) {
    event.preventDefault();
    let next: unknown;
    try {
      next = JSON.parse(text);
    } catch {
      setTrouble("That is not JSON.");
      return;
    }
    await act(() => call("PUT", pathOf(name), { body: next, headers: { "If-Match": `"${version}"` } }));
  }
  return (
    <section class="key card" aria-label={name}>
      <header>
        <h2>
          <code>{name}</code>
        </h2>
        <span class="hint">version {version}</span>
      </header>
      <form onSubmit={save}>
        <label>
          State, as JSON
          <textarea rows={12} spellcheck={false} value={text} onInput={(event) => setText(event.currentTarget.value)} />
        </label>
        <p class="trouble" role="alert">
          {trouble}
        </p>
        <div class="actions">
          <button class="primary" type="submit">
            Save
          </button>
          {sure ? (
            <>
              <button type="button" class="danger" onClick={() => void act(() => call("DELETE", pathOf(name)))}>
                Delete {name}
              </button>
              <button type="button" onClick={() => setSure(false)}>
                Keep
              </button>
            </>
          ) : (
            <button type="button" onClick={() => setSure(true)}>
              Delete…
            </button>
          )}
        </div>
      </form>
      <h3>Earlier versions</h3>
      {history === undefined && !trouble && <p class="empty">Loading…</p>}
      <ol class="history">
        {history?.map((kept) => (
          <li key={kept.version}>
            <details>
              <summary>
                version {kept.version}
                <small>
                  {new Date(kept.updatedAt).toLocaleString()} · {kept.deviceId ? "by a device" : "over REST"}
                </small>
              </summary>
              <pre tabIndex={0}>{kept.deleted ? "(deleted)" : JSON.stringify(kept.state, null, 2)}</pre>
            </details>
            {kept.version !== version && !kept.deleted && (
              <button
                type="button"
                onClick={() => void act(() => call("POST", `${pathOf(name)}/restore`, { body: { version: kept.version } }))}
                aria-label={`Restore version ${kept.version}`}
              >
                Restore
              </button>
            )}
          </li>
        ))}
      </ol>
    </section>
  );
}
