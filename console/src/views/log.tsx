// What travelled between the demo's devices and the server, newest first.
import type { LogLine, Pair } from "../demo/station";

export function Log({ pair }: { pair: Pair }) {
  const lines = [...pair.lines.value].reverse();
  return (
    <section class="log" aria-labelledby="log-title">
      <h2 id="log-title">On the wire</h2>
      <p>Every event as it was sent or received; open one to read it.</p>
      <ul tabIndex={0} aria-labelledby="log-title">
        {lines.length === 0 && <li class="empty">Nothing yet.</li>}
        {lines.map((line) => (
          <Line line={line} key={line.id} />
        ))}
      </ul>
    </section>
  );
}

function Line({ line }: { line: LogLine }) {
  return (
    <li class={line.side}>
      <details>
        <summary>
          <time>{new Date(line.at).toLocaleTimeString()}</time>
          <span class="side">{line.side}</span>
          <span aria-label={line.sent ? "sent" : "received"}>{line.sent ? "→" : "←"}</span>
          <code>{line.event}</code>
          {line.times > 1 && <span class="times">× {line.times}</span>}
        </summary>
        <pre tabIndex={0}>{JSON.stringify(line.body, null, 2)}</pre>
      </details>
    </li>
  );
}
