// A shopping list that all devices of one person share: enter in two windows with one account, and switch one offline.
//   (cd ../../sdk/typescript && npm install && npm run build)
//   npm install && npm run dev
import { CrossDeviceSync } from "@tandem/client";
import { TandemProvider, useConnectionStatus, useDevices, useRealtime, useSession, useTandem } from "@tandem/client/react";
import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";

const url = new URLSearchParams(location.search).get("server") ?? "http://localhost:3001";

/** Thing to buy, and whether it was bought. */
type List = { [thing: string]: boolean };

function Shopping() {
  const { state: list = {}, pending, edit } = useSession<List>("shopping");
  const { unstored } = useConnectionStatus();
  const [typing, setTyping] = useState("");
  const tell = useRealtime<string>("typing", setTyping);

  function add(form: FormData) {
    const thing = String(form.get("thing")).trim();
    // Only what the function changes is sent: what others add or tick meanwhile stays.
    if (thing) void edit((list) => ({ ...list, [thing]: false }));
    tell("");
  }

  return (
    <section>
      <form action={add}>
        <input name="thing" aria-label="To buy" autoComplete="off" onChange={(event) => tell(event.target.value)} />
        <button>Add</button> {typing && <em>Another device writes “{typing}”</em>}
      </form>
      <ul aria-label="List">
        {Object.entries(list).map(([thing, isBought]) => (
          <li key={thing}>
            <label>
              <input
                type="checkbox"
                checked={isBought}
                onChange={(event) => void edit((list) => ({ ...list, [thing]: event.target.checked }))}
              />
              {thing}
            </label>
          </li>
        ))}
      </ul>
      <p>{unstored ? "Saving…" : pending ? "Saved on this device" : "Saved"}</p>
    </section>
  );
}

function Connection() {
  const client = useTandem();
  const { status, trouble, waiting } = useConnectionStatus();
  const online = useDevices().filter((device) => device.online);
  return (
    <header>
      <p role="status">
        {status}
        {trouble && `: ${trouble.message}`}, {waiting} to send, {online.length} online
      </p>
      <button onClick={() => (status === "offline" ? client.connect() : client.disconnect())}>
        {status === "offline" ? "Go online" : "Go offline"}
      </button>
    </header>
  );
}

function Enter({ entered }: { entered: (token: string) => void }) {
  const [trouble, setTrouble] = useState("");
  async function enter(form: FormData) {
    const post = async (path: string) => {
      const headers = { "content-type": "application/json" };
      const answer = await fetch(url + path, { method: "POST", headers, body: JSON.stringify(Object.fromEntries(form)) });
      return answer.json();
    };
    let said = await post("/api/auth/register");
    if (said.error?.code === "email_taken") said = await post("/api/auth/login");
    if (said.error) setTrouble(said.error.message);
    else entered(said.token);
  }
  return (
    <form action={enter}>
      <label>
        E-mail address <input name="email" type="email" required />
      </label>
      <label>
        Password <input name="password" type="password" required minLength={8} />
      </label>
      <button>Enter</button> {trouble}
    </form>
  );
}

function App() {
  const [token, setToken] = useState<string>();
  const [client, setClient] = useState<CrossDeviceSync>();
  useEffect(() => {
    if (!token) return;
    const made = new CrossDeviceSync(token, { name: "React", type: "browser" }, { url });
    setClient(made);
    return () => void made.close();
  }, [token]);
  if (!client) return <Enter entered={setToken} />;
  return (
    <TandemProvider client={client}>
      <Connection />
      <Shopping />
    </TandemProvider>
  );
}

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <h1>Shopping</h1>
    <App />
  </StrictMode>,
);
