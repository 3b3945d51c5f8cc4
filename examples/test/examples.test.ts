// The examples run as they stand: the script in Node, the pages in Chromium, each in two windows of one user. Those that
// need nothing but the stock clients, quickstart/ and python/, run in tests/integration/examples.rs.
import { execFile, execFileSync } from "node:child_process";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { type Browser, type BrowserContext, type Page, chromium } from "playwright-core";
import { type PreviewServer, preview } from "vite";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import { type Server, endAll, serve } from "../../tests/support/server.mjs";

const PASSWORD = "correct horse";
const examples = join(import.meta.dirname, "..");
let browser: Browser;
let server: Server;
let app: PreviewServer | undefined;
const complaints: string[] = [];

beforeAll(async () => {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  // A name that is not localhost makes a page over plain http an insecure one.
  const args = ["--no-sandbox", "--disable-dev-shm-usage", "--host-resolver-rules=MAP shop.test 127.0.0.1"];
  browser = await chromium.launch({ executablePath, args });
  server = await serve();
});

afterEach(() => expect(complaints.splice(0)).toEqual([]));

afterAll(async () => {
  await browser?.close();
  await app?.close();
  await endAll();
});

/** A tab that shows an example. What it complains about fails the test. */
async function open(context: BrowserContext, url: string): Promise<Page> {
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  page.on("console", (message) => {
    // Whoever is not the first to enter finds that the address is taken, and the browser says so.
    if (message.type() === "error" && !message.text().includes("status of 409")) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.goto(`${url}?server=${encodeURIComponent(server.url)}`);
  return page;
}

async function enter(page: Page, email: string): Promise<void> {
  await page.getByLabel("E-mail address").fill(email);
  await page.getByLabel("Password").fill(PASSWORD);
  await page.getByRole("button", { name: "Enter" }).click();
  await page.getByRole("status").filter({ hasText: /connected|online,/i }).waitFor();
}

const someone = () => `ann-${crypto.randomUUID()}@example.test`;

/** The address of the React app, which is built once. */
async function reactApp(): Promise<URL> {
  const root = join(examples, "react");
  if (!app) {
    // As a person would build it: vitest's own NODE_ENV makes a build for development.
    execFileSync("npm", ["run", "--silent", "build"], { cwd: root, env: { ...process.env, NODE_ENV: "production" } });
    const options = { host: "127.0.0.1", allowedHosts: true as const };
    app = await preview({ root, configFile: false, logLevel: "error", preview: options });
  }
  return new URL(app.resolvedUrls?.local[0] as string);
}

/** Two windows, each of a browser of its own, of one user. */
async function twoWindows(url: string): Promise<[Page, Page]> {
  const email = someone();
  const first = await open(await browser.newContext(), url);
  const second = await open(await browser.newContext(), url);
  for (const page of [first, second]) await enter(page, email);
  return [first, second];
}

async function add(page: Page, thing: string): Promise<void> {
  await page.getByLabel("To buy").fill(thing);
  await page.getByRole("button", { name: "Add" }).click();
}

test("the script shows what two devices made of each other's edits", async () => {
  const { stdout } = await promisify(execFile)("node", [join(examples, "node/index.js"), server.url]);
  expect(stdout).toContain("phone shows { title: 'Bread', flour: 500, likes: 0 }");
  for (const name of ["laptop", "phone"]) {
    expect(stdout).toContain(`${name} shows { title: 'Rye bread', flour: 450, likes: 2 }`);
  }
  expect(stdout).toContain("laptop is told the oven is hot");
});

test("the plain page shares a note and a counter with another window", async () => {
  const [first, second] = await twoWindows(pathToFileURL(join(examples, "page/index.html")).href);
  for (const page of [first, second]) await expect.poll(() => page.getByRole("listitem").count()).toBe(2);

  await first.getByLabel("Note").fill("Buy stamps");
  await expect.poll(() => second.getByLabel("Note").inputValue()).toBe("Buy stamps");
  await second.getByLabel("Note").fill("Buy stamps and envelopes");
  await expect.poll(() => first.getByLabel("Note").inputValue()).toBe("Buy stamps and envelopes");
  await Promise.all([first, second].map((page) => page.getByRole("button", { name: "Like" }).click()));
  for (const page of [first, second]) await expect.poll(() => page.locator("#likes").textContent()).toBe("2");
});

test("the React app shares a list, also what was added offline", async () => {
  const [first, second] = await twoWindows((await reactApp()).href);
  await second.getByRole("status").filter({ hasText: "online, 0 to send, 2 online" }).waitFor();

  await add(first, "Bread");
  await second.getByLabel("Bread").check();
  await expect.poll(() => first.getByLabel("Bread").isChecked()).toBe(true);
  await second.getByLabel("To buy").fill("Che");
  await first.getByText("Another device writes “Che”").waitFor();

  await first.getByRole("button", { name: "Go offline" }).click();
  await add(first, "Milk");
  await first.getByRole("status").filter({ hasText: "offline, 1 to send" }).waitFor();
  await add(second, "Cheese");
  await first.getByRole("button", { name: "Go online" }).click();
  for (const page of [first, second]) {
    await expect.poll(() => page.getByLabel("List").getByRole("listitem").allTextContents()).toHaveLength(3);
    await page.getByText("Saved", { exact: true }).waitFor();
  }
});

test("two tabs over plain http, where there are no Web Locks, are two devices, and a reload sends what was left", async () => {
  const url = await reactApp();
  url.hostname = "shop.test";
  const email = someone();
  const context = await browser.newContext();
  const tabs = [await open(context, url.href), await open(context, url.href)];
  for (const tab of tabs) {
    expect(await tab.evaluate(() => "locks" in navigator)).toBe(false);
    await enter(tab, email);
  }
  const [first, second] = tabs as [Page, Page];
  await first.getByRole("status").filter({ hasText: "2 online" }).waitFor();
  await second.getByRole("button", { name: "Go offline" }).click();
  await add(second, "Milk");
  await second.getByRole("status").filter({ hasText: "offline, 1 to send" }).waitFor();
  await second.getByText("Saved on this device").waitFor();
  await second.reload();
  await enter(second, email);
  await first.getByLabel("Milk").waitFor();
  await second.getByRole("status").filter({ hasText: "2 online" }).waitFor();

  const { token } = await server.ask("POST", "/api/auth/login", { email, password: PASSWORD });
  const { devices } = await server.ask("GET", "/api/devices", undefined, token);
  expect(devices.length).toBe(2);
});
