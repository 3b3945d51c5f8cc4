// The slider and the counter of one demo device.
//
// While the slider is dragged its positions go out as realtime events that are stored nowhere; where
// it stops is one write. The counter sends "one more" instead of a number, so that taps made on two
// devices at once, or offline, all count.
import { computed, type ReadonlySignal, type Signal, signal } from "@preact/signals";
import type { Link } from "../core/link";

export const DIAL = "demo-dial";

interface Dial {
  volume: number;
  taps: number;
}

export class Controls {
  /** Where a slider is held right now, here or on the other device. */
  readonly held: Signal<number | undefined> = signal(undefined);
  readonly heldElsewhere: Signal<boolean> = signal(false);
  readonly stored: ReadonlySignal<Dial>;
  readonly volume: ReadonlySignal<number>;
  readonly taps: ReadonlySignal<number>;
  private readonly tapsUnsent: Signal<number> = signal(0);

  constructor(private readonly link: Link) {
    this.stored = computed(() => {
      const state = this.link.data.value.get(DIAL)?.state as Partial<Dial> | undefined;
      return { volume: number(state?.volume, 40), taps: number(state?.taps, 0) };
    });
    this.volume = computed(() => this.held.value ?? this.stored.value.volume);
    this.taps = computed(() => this.stored.value.taps + this.tapsUnsent.value);
  }

  drag(volume: number): void {
    this.held.value = volume;
    this.heldElsewhere.value = false;
    this.link.realtime("volume", { volume }, "volume");
  }

  async release(volume: number): Promise<void> {
    this.held.value = volume;
    const ack = await this.link.write({ sessionKey: DIAL, patch: { volume } });
    if (ack.ok || this.held.value === volume) this.held.value = undefined;
  }

  dragged(payload: unknown): void {
    const { volume } = payload as { volume?: unknown };
    if (typeof volume !== "number") return;
    this.held.value = Math.min(100, Math.max(0, volume));
    this.heldElsewhere.value = true;
  }

  /** The dial was written: what was only heard before is settled. */
  changed(): void {
    if (!this.heldElsewhere.value) return;
    this.held.value = undefined;
    this.heldElsewhere.value = false;
  }

  async tap(): Promise<void> {
    this.tapsUnsent.value += 1;
    await this.link.write({ sessionKey: DIAL, ops: [{ op: "inc", path: "/taps", value: 1 }] });
    this.tapsUnsent.value -= 1;
  }
}

const number = (value: unknown, otherwise: number): number => (typeof value === "number" ? value : otherwise);
