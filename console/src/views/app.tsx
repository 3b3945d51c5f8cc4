// The frame: who is logged in, where in the console one is, and the page for it.
import { computed, effect, signal } from "@preact/signals";
import { farewell, leave, login } from "../core/account";
import { failureOf, inWords } from "../core/failure";
import { Demo } from "./demo";
import { Devices } from "./devices";
import { Enter } from "./enter";
import { Session } from "./session";

const places = { demo: "Try it", devices: "Devices", session: "Session" } as const;
type Place = keyof typeof places;

const here = signal<Place>(placeOf(location.hash));
addEventListener("hashchange", () => {
  here.value = placeOf(location.hash);
});

function placeOf(hash: string): Place {
  const name = hash.replace(/^#\/?/, "");
  return name in places ? (name as Place) : "demo";
}

const user = computed(() => login.value?.user);
const trouble = signal("");

effect(() => {
  document.title = user.value ? `${places[here.value]} · Tandem` : "Tandem";
});

export function App() {
  const now = user.value;
  return (
    <>
      <a class="skip" href="#main">
        Skip to the content
      </a>
      <header class="top">
        <a class="brand" href="#/">
          <Mark />
          Tandem
        </a>
        {now && (
          <nav aria-label="Console">
            {Object.entries(places).map(([place, title]) => (
              <a href={`#/${place}`} aria-current={here.value === place ? "page" : undefined} key={place}>
                {title}
              </a>
            ))}
          </nav>
        )}
        <div class="who">
          <a href="/docs">API</a>
          {now && <Who email={now.email} />}
        </div>
      </header>
      <main id="main" tabIndex={-1}>
        {trouble.value && (
          <p class="trouble" role="alert">
            {trouble.value}
          </p>
        )}
        {now ? <Page key={`${now.id}-${here.value}`} place={here.value} /> : <Enter farewell={farewell.value} />}
      </main>
    </>
  );
}

function Page({ place }: { place: Place }) {
  if (place === "devices") return <Devices />;
  if (place === "session") return <Session />;
  return <Demo userId={user.value?.id ?? ""} />;
}

function Who({ email }: { email: string }) {
  const end = (everywhere: boolean) => () => {
    trouble.value = "";
    leave(everywhere).catch((thrown) => {
      trouble.value = inWords(failureOf(thrown));
    });
  };
  return (
    <details class="menu">
      <summary>{email}</summary>
      <div>
        <button type="button" onClick={end(false)}>
          Log out
        </button>
        <button type="button" onClick={end(true)}>
          Log out everywhere
        </button>
      </div>
    </details>
  );
}

function Mark() {
  return (
    <svg viewBox="0 0 32 32" width="28" height="28" aria-hidden="true">
      <path d="M11 21.5 15.5 12h6.5" class="mark-frame" />
      <circle cx="9" cy="21" r="6" class="mark-one" />
      <circle cx="23" cy="21" r="6" class="mark-two" />
    </svg>
  );
}
