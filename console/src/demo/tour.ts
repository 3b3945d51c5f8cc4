// What the demo shows, step by step, and how it plays each step by itself with the same calls that a
// person's hands make.
import type { Pair, Station, StepId } from "./station";

export interface Step {
  id: StepId;
  title: string;
  /** What to do by hand. */
  doIt: string;
  /** What happens behind it. */
  why: string;
  play(pair: Pair): Promise<void>;
}

const calm = (): boolean => matchMedia("(prefers-reduced-motion: reduce)").matches;

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, calm() ? Math.min(ms, 200) : ms));

const PATIENCE_MS = 6_000;

/** Waits until something holds, or long enough. */
async function until(holds: () => boolean): Promise<void> {
  const end = Date.now() + PATIENCE_MS;
  while (!holds() && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 30));
}

const settled = (station: Station): boolean => {
  const draft = station.note.draft.value;
  return draft.text === draft.base.text && draft.sent === undefined;
};

async function online(...stations: Station[]): Promise<void> {
  for (const station of stations) station.link.comeBack();
  await until(() => stations.every((station) => station.link.status.value === "online" && station.link.restored.value));
}

/** Replaces `line` of the note, letter by letter. */
async function write(station: Station, line: number, text: string): Promise<void> {
  const linesNow = () => station.note.draft.value.text.split("\n");
  while (linesNow().length <= line) station.note.type(`${station.note.draft.value.text}\n`);
  const chunk = calm() ? text.length : 1;
  for (let end = chunk; end <= text.length; end += chunk) {
    const lines = linesNow();
    lines[line] = text.slice(0, end);
    station.note.type(lines.join("\n"));
    const at = lines.slice(0, line + 1).join("\n").length;
    station.note.point(at, at);
    await pause(38);
  }
}

/** The line that starts with `start`, or the one after the last. */
function lineOf(station: Station, start: string): number {
  const lines = station.note.draft.value.text.replace(/\n+$/, "").split("\n");
  const found = lines.findIndex((line) => line.startsWith(start));
  return found >= 0 ? found : lines.length;
}

const minute = (): string => String(10 + Math.floor(Math.random() * 49));

export const steps: readonly Step[] = [
  {
    id: "type",
    title: "Write together",
    doIt: "Type in the note on either device. The other follows, and shows where you are.",
    why: "Each pause in typing is one session-update with the version it was typed on. It is acknowledged when it is on disk. The caret is a realtime-event: passed on, never stored.",
    async play({ laptop, phone }) {
      await online(laptop, phone);
      await write(laptop, lineOf(laptop, "Weekend"), `Weekend in Lisbon, ${["May", "June", "July", "August"][Math.floor(Math.random() * 4)]} ${minute()}`.replace(/\d+$/, (n) => String(Number(n) % 28 + 1)));
      await until(() => settled(laptop) && phone.note.draft.value.text === laptop.note.draft.value.text);
    },
  },
  {
    id: "drag",
    title: "Drag a slider",
    doIt: "Drag the volume on one device and watch the other move with it.",
    why: "While you drag, each position is a realtime-event with a coalesce key: a slow device skips to the newest. Only where you let go is written down.",
    async play({ laptop, phone }) {
      await online(laptop, phone);
      const from = phone.controls.volume.value;
      const to = from > 50 ? 15 : 85;
      const moves = calm() ? 1 : 40;
      for (let move = 1; move <= moves; move++) {
        phone.controls.drag(Math.round(from + ((to - from) * move) / moves));
        await pause(22);
      }
      await phone.controls.release(to);
    },
  },
  {
    id: "message",
    title: "Message a device that is away",
    doIt: "Take the phone offline, send it a message from the laptop, and bring it back.",
    why: "A device-message for a device that is away is kept in its mailbox for up to 7 days. The sender hears “queued” now and “delivered” later.",
    async play({ laptop, phone }) {
      await online(laptop, phone);
      phone.goOffline();
      await pause(700);
      await laptop.send("Tickets are in your inbox");
      await pause(1_300);
      await online(phone);
      await until(() => phone.messages.value.some((message) => message.waited));
    },
  },
  {
    id: "merge",
    title: "Edit apart, come back",
    doIt: "Take the phone offline. Change one line there and another on the laptop, tap both counters, then bring the phone back.",
    why: "The phone asks for what changed since its last seq and merges it with what you typed. Its write names the version it was made on, so nothing is overwritten unseen. Taps are sent as “one more”, so all of them count.",
    async play({ laptop, phone }) {
      await online(laptop, phone);
      await until(() => settled(laptop) && settled(phone));
      phone.goOffline();
      await pause(600);
      await write(laptop, lineOf(laptop, "Dinner"), `Dinner on Saturday: table at 19:${minute()}`);
      void laptop.controls.tap();
      await write(phone, lineOf(phone, "Pack"), `Pack: charger, rain jacket, ${["sunscreen", "a book", "the camera"][Math.floor(Math.random() * 3)]} no. ${minute()}`);
      void phone.controls.tap();
      void phone.controls.tap();
      await pause(900);
      await online(phone);
      await until(() => settled(phone) && phone.note.draft.value.text === laptop.note.draft.value.text);
    },
  },
  {
    id: "conflict",
    title: "Disagree, and decide",
    doIt: "Take the phone offline and change the same words on both. Bring it back: it asks you which to keep.",
    why: "Two people’s worth of intent on the same words is nothing a clock should decide. The server refuses the write with “conflict” and both texts stay until you choose.",
    async play({ laptop, phone }) {
      await online(laptop, phone);
      await until(() => settled(laptop) && settled(phone));
      phone.goOffline();
      await pause(600);
      await write(laptop, lineOf(laptop, "Train"), `Train leaves at 10:${minute()}, platform 4`);
      await until(() => settled(laptop));
      await write(phone, lineOf(phone, "Train"), `Train leaves at 11:${minute()}, platform 4`);
      await pause(900);
      await online(phone);
      await until(() => phone.note.draft.value.conflict !== undefined);
    },
  },
];
