// One demo device as a person sees it.
import { useRef } from "preact/hooks";
import { inWords } from "../core/failure";
import type { Message, Station } from "../demo/station";
import { NoteView } from "./note";

const statusWords = {
  connecting: "Connecting…",
  online: "Online",
  offline: "Offline",
  ended: "Ended",
} as const;

export function StationView({ station }: { station: Station }) {
  const { link, side, title } = station;
  const status = link.status.value;
  const waiting = link.waiting.value;
  const ended = link.ended.value;
  const isOffline = status === "offline" || status === "ended";
  return (
    <section class={`station ${side} ${status}`} aria-label={title}>
      <header>
        <h2>
          <DeviceIcon phone={side === "phone"} />
          {title}
        </h2>
        <span class="status" role="status">
          <span class="dot" aria-hidden="true" />
          {statusWords[status]}
          {waiting > 0 && ` · ${waiting} unsent`}
        </span>
        <button
          type="button"
          class="switch"
          aria-pressed={isOffline}
          aria-label={`${title} offline`}
          onClick={() => (isOffline ? link.comeBack() : station.goOffline())}
        >
          {isOffline ? "Go online" : "Go offline"}
        </button>
      </header>
      {ended && (
        <p class="trouble" role="alert">
          {inWords(ended)}
        </p>
      )}
      <NoteView station={station} />
      <ControlsView station={station} />
      <MessagesView station={station} />
    </section>
  );
}

function ControlsView({ station: { controls, title } }: { station: Station }) {
  const volume = Math.round(controls.volume.value);
  return (
    <div class="controls">
      <label>
        <span>Volume</span>
        <input
          type="range"
          min={0}
          max={100}
          value={volume}
          aria-label={`Volume on ${title}`}
          onInput={(event) => controls.drag(Number(event.currentTarget.value))}
          onChange={(event) => void controls.release(Number(event.currentTarget.value))}
        />
        <output>{volume}</output>
      </label>
      <button type="button" onClick={() => void controls.tap()} aria-label={`Count one more on ${title}`}>
        <span aria-hidden="true">+1</span> <strong>{controls.taps.value}</strong> taps
      </button>
    </div>
  );
}

const messageStatus: Record<NonNullable<Message["status"]>, string> = {
  sending: "sending",
  delivered: "delivered",
  queued: "waits for it",
  expired: "expired",
  failed: "not sent",
};

function MessagesView({ station }: { station: Station }) {
  const field = useRef<HTMLInputElement>(null);
  const messages = station.messages.value;
  const to = station.side === "laptop" ? "phone" : "laptop";
  function submit(event: SubmitEvent) {
    event.preventDefault();
    const text = field.current?.value.trim();
    if (!text || !field.current) return;
    field.current.value = "";
    void station.send(text);
  }
  return (
    <div class="messages">
      <ul aria-live="polite" aria-label={`Messages on ${station.title}`}>
        {messages.length === 0 && <li class="empty">No messages yet.</li>}
        {messages.slice(-4).map((message) => (
          <li class={message.mine ? "mine" : "theirs"} key={message.id}>
            <span>{message.text}</span>
            {message.mine && message.status && <small>{messageStatus[message.status]}</small>}
            {message.waited && <small>waited while this device was away</small>}
          </li>
        ))}
      </ul>
      <form onSubmit={submit}>
        <input ref={field} placeholder={`Message to the ${to}`} aria-label={`Message to the ${to}`} maxLength={500} />
        <button type="submit">Send</button>
      </form>
    </div>
  );
}

function DeviceIcon({ phone }: { phone: boolean }) {
  return (
    <svg viewBox="0 0 24 24" width="20" height="20" aria-hidden="true" class="icon">
      {phone ? (
        <path d="M8 3h8a1.5 1.5 0 0 1 1.5 1.5v15A1.5 1.5 0 0 1 16 21H8a1.5 1.5 0 0 1-1.5-1.5v-15A1.5 1.5 0 0 1 8 3Zm2.5 15h3" />
      ) : (
        <path d="M5 5.5h14v10H5zM2.5 18.5h19" />
      )}
    </svg>
  );
}
