// Make an account, or log in to one.
import { useState } from "preact/hooks";
import { enter } from "../core/account";
import { failureOf, inWords } from "../core/failure";

export function Enter({ farewell }: { farewell: string | undefined }) {
  const [way, setWay] = useState<"register" | "login">("register");
  const [busy, setBusy] = useState(false);
  const [trouble, setTrouble] = useState("");
  const isNew = way === "register";

  async function submit(event: SubmitEvent) {
    event.preventDefault();
    const fields = new FormData(event.currentTarget as HTMLFormElement);
    setBusy(true);
    setTrouble("");
    try {
      await enter(way, String(fields.get("email")), String(fields.get("password")));
    } catch (thrown) {
      const failure = failureOf(thrown);
      setTrouble(inWords(failure));
      if (failure.code === "email_taken") setWay("login");
      setBusy(false);
    }
  }

  return (
    <div class="enter">
      <section class="pitch">
        <h1>One person, every device, in step.</h1>
        <p>
          What one device changes, the others have a few milliseconds later. A device that was away gets exactly what it
          missed. Two that edit at once do not destroy each other’s work.
        </p>
        <p>
          This page shows it live: two devices side by side, both connected to this server. Make an account to begin; it
          stays on this server, and any e-mail address will do.
        </p>
      </section>
      <section class="card" aria-labelledby="enter-title">
        <h2 id="enter-title">{isNew ? "Create an account" : "Log in"}</h2>
        {farewell && !trouble && <p class="note-line">{farewell}</p>}
        <form onSubmit={submit}>
          <label>
            E-mail address
            <input name="email" type="email" autocomplete="email" required maxLength={254} />
          </label>
          <label>
            Password
            <input
              name="password"
              type="password"
              autocomplete={isNew ? "new-password" : "current-password"}
              required
              minLength={isNew ? 8 : 1}
              aria-describedby={isNew ? "password-rule" : undefined}
            />
          </label>
          {isNew && (
            <p class="hint" id="password-rule">
              At least 8 characters.
            </p>
          )}
          <p class="trouble" role="alert">
            {trouble}
          </p>
          <button class="primary" type="submit" disabled={busy}>
            {busy ? "One moment…" : isNew ? "Create account" : "Log in"}
          </button>
        </form>
        <p class="hint">
          {isNew ? "You have one already? " : "New here? "}
          <button
            class="link"
            type="button"
            onClick={() => {
              setWay(isNew ? "login" : "register");
              setTrouble("");
            }}
          >
            {isNew ? "Log in" : "Create an account"}
          </button>
        </p>
      </section>
    </div>
  );
}
