// Random ids, and which device this tab is.
//
// Tabs of one browser take numbered slots, each with the ids that its devices had before, so that
// opening the page again brings the same devices back instead of adding new ones, and two tabs never
// fight over one. A slot is held by a lock, which ends with its tab.

/** 128 random bits in hexadecimal; `crypto.randomUUID` is missing on plain http. */
export function randomId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const SLOTS = 16;

let slot: Promise<number> | undefined;

/** The slot of this tab. Without locks (plain http) all tabs share the first. */
function mySlot(): Promise<number> {
  slot ??= (async () => {
    if (!navigator.locks) return 0;
    for (let number = 0; number < SLOTS; number++) {
      const taken = await new Promise<boolean>((resolve) => {
        void navigator.locks.request(`tandem.slot.${number}`, { ifAvailable: true }, (lock) => {
          resolve(lock !== null);
          return lock === null ? undefined : new Promise(() => {});
        });
      });
      if (taken) return number;
    }
    return SLOTS;
  })();
  return slot;
}

/** Where the id of the device in this `role` is kept. */
export async function deviceIdKeeper(userId: string, role: string): Promise<{ id?: string; keep(id: string): void }> {
  const name = `tandem.device.${userId}.${await mySlot()}.${role}`;
  const id = localStorage.getItem(name);
  return { ...(id ? { id } : {}), keep: (next) => localStorage.setItem(name, next) };
}

/** "Chrome on Linux", as far as the browser says. */
export function browserName(): string {
  const agent = navigator.userAgent;
  const browser = /Firefox\//.test(agent)
    ? "Firefox"
    : /Edg\//.test(agent)
      ? "Edge"
      : /Chrome\//.test(agent)
        ? "Chrome"
        : /Safari\//.test(agent)
          ? "Safari"
          : "Browser";
  const system = /Android/.test(agent)
    ? "Android"
    : /iPhone|iPad/.test(agent)
      ? "iOS"
      : /Mac OS/.test(agent)
        ? "macOS"
        : /Windows/.test(agent)
          ? "Windows"
          : /Linux/.test(agent)
            ? "Linux"
            : "";
  return system ? `${browser} on ${system}` : browser;
}
