// Two devices in one window, what to try with them, and what travels between.
import { signal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { Pair } from "../demo/station";
import { type Step, steps } from "../demo/tour";
import { Log } from "./log";
import { StationView } from "./station";

const playing = signal<string | undefined>(undefined);

export function Demo({ userId }: { userId: string }) {
  const pair = useMemo(() => new Pair(userId), [userId]);
  useEffect(() => () => pair.close(), [pair]);
  return (
    <div class="demo">
      <div class="intro">
        <h1>Two devices, one session</h1>
        <p>
          Both are connected to this server, each over a connection of its own. Use them, or let a step play itself.
        </p>
      </div>
      <div class="stations">
        <StationView station={pair.laptop} />
        <StationView station={pair.phone} />
      </div>
      <section class="tour" aria-labelledby="tour-title">
        <h2 id="tour-title">Five things to try</h2>
        <ol>
          {steps.map((step) => (
            <StepView step={step} pair={pair} key={step.id} />
          ))}
        </ol>
      </section>
      <Log pair={pair} />
    </div>
  );
}

function StepView({ step, pair }: { step: Step; pair: Pair }) {
  const done = pair.achieved.value.has(step.id);
  async function play() {
    playing.value = step.id;
    try {
      await step.play(pair);
    } finally {
      playing.value = undefined;
    }
  }
  return (
    <li class={done ? "done" : ""}>
      <div>
        <h3>
          {step.title} {done && <span class="badge">done</span>}
        </h3>
        <p>{step.doIt}</p>
        <details>
          <summary>What happens</summary>
          <p>{step.why}</p>
        </details>
      </div>
      <button
        type="button"
        disabled={playing.value !== undefined}
        aria-label={`Show me: ${step.title}`}
        onClick={() => void play()}
      >
        {playing.value === step.id ? "Playing…" : "Show me"}
      </button>
    </li>
  );
}
