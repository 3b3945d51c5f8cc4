// Real nodes for the tests in TypeScript (sdk/, console/, examples/): the built binary on a free port, its database in a
// temporary folder.
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

function binary(): string {
  const root = resolve(import.meta.dirname, "../../target");
  const found = [process.env.TANDEM_BIN, join(root, "release/tandem"), join(root, "debug/tandem")];
  const path = found.find((file) => file && existsSync(file));
  if (!path) throw new Error("no server: set TANDEM_BIN, or cargo build");
  return path;
}

export class Server {
  #process: ChildProcess | undefined;
  url = "";

  constructor(
    readonly folder: string,
    private readonly env: Record<string, string> = {},
  ) {}

  /** Starts it, on the port that it had if it had one. */
  async start(): Promise<this> {
    const child = spawn(binary(), {
      cwd: this.folder,
      env: {
        PATH: process.env.PATH,
        HOST: "127.0.0.1",
        PORT: this.url ? new URL(this.url).port : "0",
        DATABASE_URL: `sqlite://${join(this.folder, "tandem.db")}`,
        BCRYPT_COST: "4",
        DRAIN_SECONDS: "0",
        DRAIN_LAG_SECONDS: "0",
        LOG_FORMAT: "json",
        LIMIT_AUTH_PER_ADDRESS: "0",
        ...this.env,
      },
      stdio: ["ignore", "ignore", "pipe"],
    });
    this.#process = child;
    const address = await new Promise<string>((found, failed) => {
      let text = "";
      child.stderr?.on("data", (chunk) => {
        text += chunk;
        const line = text.split("\n").find((line) => line.includes('"listening"'));
        if (line) found((JSON.parse(line) as { address: string }).address);
      });
      child.on("exit", () => failed(new Error(`the server did not start:\n${text}`)));
    });
    this.url = `http://${address}`;
    return this;
  }

  async kill(): Promise<void> {
    const child = this.#process;
    this.#process = undefined;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGKILL");
    await gone;
  }

  async ask(method: string, path: string, body?: unknown, token?: string): Promise<any> {
    const answer = await fetch(this.url + path, {
      method,
      headers: {
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...(token ? { authorization: `Bearer ${token}` } : {}),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    return answer.status === 204 ? undefined : answer.json();
  }

  async register(name = "ann"): Promise<{ token: string; refreshToken: string; id: string }> {
    const email = `${name}-${crypto.randomUUID()}@example.test`;
    const body = await this.ask("POST", "/api/auth/register", { email, password: "correct horse" });
    return { token: body.token, refreshToken: body.refreshToken, id: body.user.id };
  }

  session(token: string): Promise<any> {
    return this.ask("GET", "/api/session", undefined, token);
  }
}

const folders: string[] = [];
const servers: Server[] = [];

export function folder(): string {
  const made = mkdtempSync(join(tmpdir(), "tandem-test-"));
  folders.push(made);
  return made;
}

export async function serve(env: Record<string, string> = {}, at = folder()): Promise<Server> {
  const server = new Server(at, env);
  servers.push(server);
  return server.start();
}

/** Ends everything that was started; for afterEach. */
export async function endAll(): Promise<void> {
  await Promise.all(servers.splice(0).map((server) => server.kill()));
  for (const made of folders.splice(0)) rmSync(made, { recursive: true, force: true });
}
