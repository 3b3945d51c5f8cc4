// The examples run as they stand: the script in Node, the pages in Chromium, each in two windows of one user. Those that
// need nothing but the stock clients, quickstart/ and python/, run in tests/integration/examples.rs.
import { execFile, execFileSync } from "node:child_process";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { type Browser, type Page, chromium } from "playwright-core";
import { preview } from "vite";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import { type Server, endAll, serve } from "../../tests/support/server.mjs";

const examples = join(import.meta.dirname, "..");
let browser: Browser;
let server: Server;
const complaints: string[] = [];

beforeAll(async () => {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
  server = await serve();
});

afterEach(() => expect(complaints.splice(0)).toEqual([]));

afterAll(async () => {
  await browser?.close();
  await endAll();
});

/** A window of a browser of its own, which enters as this user. What it complains about fails the test. */
async function enter(url: string, email: string): Promise<Page> {
  const page = await (await browser.newContext()).newPage();
  page.setDefaultTimeout(20_000);
  page.on("console", (message) => {
    // The second window finds that the address is taken, and the browser says so.
    if (message.type() === "error" && !message.text().includes("status of 409")) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.goto(`${url}?server=${encodeURIComponent(server.url)}`);
  await page.getByLabel("E-mail address").fill(email);
  await page.getByLabel("Password").fill("correct horse");
  await page.getByRole("button", { name: "Enter" }).click();
  return page;
}

async function twoWindows(url: string): Promise<[Page, Page]> {
  const email = `ann-${crypto.randomUUID()}@example.test`;
  const first = await enter(url, email);
  await first.getByRole("status").filter({ hasText: /connected|online/i }).waitFor();
  return [first, await enter(url, email)];
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
  const root = join(examples, "react");
  execFileSync("npm", ["run", "--silent", "build"], { cwd: root, env: { ...process.env, NODE_ENV: "production" } });
  const pages = await preview({ root, configFile: false, logLevel: "error", preview: { host: "127.0.0.1" } });
  const [first, second] = await twoWindows(pages.resolvedUrls?.local[0] as string);
  const add = async (page: Page, thing: string) => {
    await page.getByLabel("To buy").fill(thing);
    await page.getByRole("button", { name: "Add" }).click();
  };
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
    await page.getByText("Saved").waitFor();
  }
  await pages.close();
});
