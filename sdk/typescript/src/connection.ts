// The connection of a device, and its status: made with a token, made again where the token expired or the network
// broke, given up where the server refuses the device for good. What is said over it is for others.
import { type ManagerOptions, type Socket, type SocketOptions, io } from "socket.io-client";

import { backoff } from "./backoff.js";
import type { Emit, Status } from "./events.js";
import type { Ack, ClientToServerEvents, Failure, ServerToClientEvents } from "./protocol.js";
import { storageFailure } from "./storage.js";
import { Token, type TokenSource } from "./token.js";

export type TandemSocket = Socket<ServerToClientEvents, ClientToServerEvents>;

/** How long an answer may take before the same write is sent again, under its id. */
const ANSWER_MS = 10_000;
/** Codes after which a device stays away. */
const FINAL = ["unauthorized", "token_expired", "device_revoked", "replaced", "invalid_device_info"];

/** What the connection needs of the client. */
interface Client {
  /** What goes with the token at every connect. */
  handshake(): Record<string, unknown>;
  connect(): void;
  /** Whether the device is still this tab's. */
  isHeld(): Promise<boolean>;
  /** Forgets the device, which was revoked. */
  forgetDevice(): void;
  statusChanged(status: Status, trouble: Failure | undefined): void;
  emit: Emit;
}

export class Connection {
  readonly socket: TandemSocket;
  readonly token: Token;
  status: Status = "connecting";
  /** Why it is not online: for good where `status` is "refused", else until it passes. */
  #trouble: Failure | undefined;
  /** The last token did no longer; cleared when one lets us in. */
  #expired = false;
  /** Connects and renewals that ask for a token; an older one has nothing to say any more. */
  #asking = 0;
  #returning: ReturnType<typeof setTimeout> | undefined;
  #end: () => void = () => {};
  readonly #ended = new Promise<void>((resolve) => {
    this.#end = resolve;
  });

  constructor(
    url: string,
    options: Partial<ManagerOptions & SocketOptions> | undefined,
    source: TokenSource,
    private readonly client: Client,
  ) {
    this.token = new Token(source, this.#ended);
    this.socket = io(url, {
      // Two clients in one page are two devices.
      multiplex: false,
      reconnectionDelay: 250,
      reconnectionDelayMax: 5_000,
      ...options,
      autoConnect: false,
      auth: (give) => void this.#credentials(give),
    });
    this.#listen();
  }

  connect(ready: Promise<void>): void {
    if (this.status === "closed") return;
    this.#setStatus("connecting", this.status === "connecting" ? this.#trouble : undefined);
    ready.then(
      () => this.dial(),
      (thrown: unknown) => this.#refuse(storageFailure(thrown)),
    );
  }

  dial(): void {
    clearTimeout(this.#returning);
    // `active`: it is on its way, or comes back by itself.
    if (this.status === "connecting" && !this.socket.active) this.socket.connect();
  }

  /** The server let the device in. */
  opened(): void {
    this.#expired = false;
    this.#setStatus("online");
  }

  disconnect(): void {
    if (this.status === "closed") return;
    this.#setStatus("offline");
    clearTimeout(this.#returning);
    this.socket.disconnect();
  }

  close(): void {
    this.#setStatus("closed");
    this.#end();
    this.socket.disconnect();
    clearTimeout(this.#returning);
  }

  /** No answer in time, and no connection, are answers too: it may be tried again. */
  ask(event: keyof ClientToServerEvents, payload: unknown): Promise<Ack<Record<string, unknown>>> {
    return new Promise((resolve) => {
      const emit = this.socket.timeout(ANSWER_MS).emit as (...args: unknown[]) => void;
      emit.call(this.socket.timeout(ANSWER_MS), event, payload, (late: Error | null, ack: Ack<Record<string, unknown>>) =>
        resolve(late ? { ok: false, error: { code: "timeout", message: "No answer came.", retryable: true } } : ack),
      );
    });
  }

  /** Asks the token's source until there is one; throws when the client is closed meanwhile. */
  async firstToken(): Promise<string> {
    for (;;) {
      try {
        return await this.token.fetch(false);
      } catch (thrown) {
        if (this.status === "closed") throw thrown;
        await this.#pause(this.#tokenFailed(thrown));
      }
    }
  }

  async #credentials(give: (auth: Record<string, unknown>) => void): Promise<void> {
    const asking = (this.#asking += 1);
    let token: string;
    try {
      // A tab that stood still must not take the device back from the one that has it now.
      if (!(await this.client.isHeld())) return;
      token = await this.token.fetch(this.#expired);
    } catch (thrown) {
      if (asking !== this.#asking || this.status !== "connecting") return;
      // A connection that says nothing would be closed; it is made again with the next try.
      this.socket.disconnect();
      this.#returning = setTimeout(() => this.dial(), this.#tokenFailed(thrown));
      return;
    }
    if (asking !== this.#asking) return;
    give({ token, ...this.client.handshake() });
  }

  #listen(): void {
    const { socket } = this;
    socket.on("auth-expiring", () => void this.#renew());
    socket.on("error", (failure) => {
      this.client.emit("error", failure);
      if (failure.code === "token_expired" && this.token.isRenewable) this.#comeAgain();
      else if (failure.code === "replaced") void this.client.isHeld().then((isHeld) => isHeld && this.#refuse(failure));
      else if (FINAL.includes(failure.code)) this.#refuse(failure);
    });
    socket.on("connect_error", (error) => this.#connectRefused(error.message));
    socket.on("disconnect", () => {
      if (this.status === "online") this.#setStatus("connecting");
    });
  }

  #connectRefused(code: string): void {
    if (!FINAL.includes(code)) {
      // It passes; socket.io-client tries again by itself.
      if (this.status !== "connecting") return;
      return this.#setStatus("connecting", { code: "unreachable", message: code, retryable: true });
    }
    const mayRenew = code === "token_expired" || code === "unauthorized";
    if (mayRenew && this.token.isRenewable && !this.#expired) return this.#comeAgain();
    if (code === "device_revoked") this.client.forgetDevice();
    this.#refuse({ code, message: "The server refused this device.", retryable: false });
  }

  /** Connects anew with another token. */
  #comeAgain(): void {
    this.#expired = true;
    this.socket.disconnect();
    if (this.status !== "closed" && this.status !== "offline") this.client.connect();
  }

  /** Gives the connection a token that lives on; a newer warning takes over. */
  async #renew(): Promise<void> {
    if (!this.token.isRenewable) return;
    const asking = (this.#asking += 1);
    for (let tries = 1; asking === this.#asking && this.socket.connected; tries += 1) {
      try {
        const ack = await this.ask("auth-refresh", { token: await this.token.fetch(true) });
        if (!ack.ok) this.client.emit("error", ack.error);
        if (ack.ok || !ack.error.retryable) return this.#setStatus(this.status);
        await this.#pause(ack.error.retryAfterMs ?? backoff(tries));
      } catch (thrown) {
        if (this.status !== "closed") await this.#pause(this.#tokenFailed(thrown));
      }
    }
  }

  /** Tells it, and says how long to wait before the next try. */
  #tokenFailed(thrown: unknown): number {
    const failure = this.token.failed(thrown);
    this.#setStatus(this.status, failure);
    this.client.emit("error", failure);
    return failure.retryAfterMs;
  }

  #refuse(failure: Failure): void {
    if (this.status === "closed" || this.status === "refused") return;
    this.socket.disconnect();
    this.#setStatus("refused", failure);
  }

  #setStatus(status: Status, trouble?: Failure): void {
    if (this.status === "closed" || (this.status === status && this.#trouble === trouble)) return;
    this.status = status;
    this.#trouble = trouble;
    this.client.statusChanged(status, trouble);
  }

  /** Until then, or until the client is closed. */
  async #pause(ms: number): Promise<void> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    await Promise.race([this.#ended, new Promise<void>((resolve) => (timer = setTimeout(resolve, ms)))]);
    clearTimeout(timer);
  }
}
