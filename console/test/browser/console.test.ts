// The console in real Chromium against a real server: what a person does, in two windows, and what they must never see.
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import AxeBuilder from "@axe-core/playwright";
import { type Browser, type BrowserContext, type Locator, type Page, chromium } from "playwright-core";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { type Server, endAll, serve } from "../../../tests/support/server.mjs";

const PASSWORD = "correct horse battery";
/** Screenshots for people: set it to a folder to keep them. */
const SHOTS = process.env.CONSOLE_SCREENSHOTS;

let browser: Browser;
let server: Server;
const contexts: BrowserContext[] = [];
const complaints: string[] = [];

beforeAll(async () => {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
  server = await serve({ LIMIT_AUTH_PER_ADDRESS: "0" });
}, 60_000);

afterEach(async () => {
  await Promise.all(contexts.splice(0).map((context) => context.close()));
  expect(complaints.splice(0)).toEqual([]);
});

afterAll(async () => {
  await browser?.close();
  await endAll();
});

type Look = { colorScheme?: "light" | "dark"; viewport?: { width: number; height: number } };

/** A window of a browser of its own. What it complains about fails the test. */
async function open(look: Look = {}, at: Server = server): Promise<Page> {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...look });
  contexts.push(context);
  const page = await context.newPage();
  page.setDefaultTimeout(10_000);
  page.on("console", (message) => {
    // What the test provokes, the browser says, too.
    const isExpected = /the server responded with a status of (401|409|412)/.test(message.text());
    if (["error", "warning"].includes(message.type()) && !isExpected) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.goto(at.url);
  return page;
}

const someone = () => `ann-${crypto.randomUUID()}@example.test`;

async function register(page: Page, email = someone()): Promise<string> {
  await page.getByLabel("E-mail address").fill(email);
  await page.getByLabel("Password").fill(PASSWORD);
  await page.getByRole("button", { name: "Create account" }).click();
  await page.getByRole("heading", { name: "Two devices, one session" }).waitFor();
  return email;
}

async function logIn(page: Page, email: string): Promise<void> {
  await page.getByRole("button", { name: "Log in" }).first().click();
  await page.getByLabel("E-mail address").fill(email);
  await page.getByLabel("Password").fill(PASSWORD);
  await page.locator("form").getByRole("button", { name: "Log in" }).click();
  await page.getByRole("heading", { name: "Two devices, one session" }).waitFor();
}

const station = (page: Page, side: "laptop" | "phone") => page.getByRole("region", { name: `Demo ${side}` });
const note = (of: Locator) => of.getByLabel(/^Note on/);
const online = (of: Locator) => of.getByRole("status").filter({ hasText: /^Online$/ }).waitFor();

async function value(field: Locator, expected: string | RegExp): Promise<void> {
  await expect
    .poll(() => field.inputValue(), { timeout: 10_000, interval: 30 })
    .toMatch(typeof expected === "string" ? new RegExp(expected.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")) : expected);
}

async function append(field: Locator, text: string): Promise<void> {
  await field.focus();
  await field.press("Control+End");
  await field.pressSequentially(text);
}

test("two devices in one window are in step, and a second window with them", async () => {
  const page = await open();
  const email = await register(page);
  const [laptop, phone] = [station(page, "laptop"), station(page, "phone")];
  await Promise.all([online(laptop), online(phone)]);

  await append(note(laptop), "Buy stamps");
  await value(note(phone), "Buy stamps");
  await phone.locator(".caret").waitFor();
  await phone.getByLabel("Volume on Demo phone").fill("73");
  await expect.poll(() => laptop.getByLabel("Volume on Demo laptop").inputValue()).toBe("73");

  const second = await open();
  await logIn(second, email);
  await value(note(station(second, "laptop")), "Buy stamps");
  await append(note(station(second, "phone")), " and envelopes");
  await value(note(laptop), "Buy stamps and envelopes");
});

test("the page works where only other origins may connect", async () => {
  const page = await open({}, await serve({ ALLOWED_ORIGINS: "https://app.example" }));
  await register(page);
  await Promise.all([online(station(page, "laptop")), online(station(page, "phone"))]);
});

test("what both wrote while one was offline is merged when it returns", async () => {
  const page = await open();
  await register(page);
  const [laptop, phone] = [station(page, "laptop"), station(page, "phone")];
  await Promise.all([online(laptop), online(phone)]);
  await value(note(phone), "Weekend in Lisbon");

  await phone.getByRole("button", { name: "Demo phone offline" }).click();
  await append(note(laptop), "From the laptop\n");
  await note(phone).focus();
  await note(phone).press("Control+Home");
  await note(phone).pressSequentially("From the phone\n");
  for (const side of [laptop, phone, phone]) await side.getByRole("button", { name: /Count one more/ }).click();
  await phone.getByRole("button", { name: "Demo phone offline" }).click();

  for (const side of [laptop, phone]) {
    await value(note(side), /^From the phone\n[^]*From the laptop\n$/);
    await side.getByRole("button", { name: /Count one more/ }).filter({ hasText: "3 taps" }).waitFor();
  }
});

test("words that both changed are for the person to decide", async () => {
  const page = await open();
  await register(page);
  const [laptop, phone] = [station(page, "laptop"), station(page, "phone")];
  await Promise.all([online(laptop), online(phone)]);
  await value(note(phone), "Weekend in Lisbon");
  await page.getByRole("button", { name: "Show me: Disagree, and decide" }).click();

  const conflict = page.getByRole("group", { name: "Conflict on Demo phone" });
  await conflict.waitFor();
  await conflict.getByRole("button", { name: "This device’s" }).click();

  await value(note(laptop), "Train leaves at 11:");
  await value(note(phone), "Train leaves at 11:");
});

test("the descriptions of REST and of the events are read, and lead to each other", async () => {
  const page = await open();
  await page.goto(`${server.url}/docs`);
  const register = page.locator("details", { has: page.getByText("/api/auth/register", { exact: true }) });
  await register.locator("summary").click();
  await register.getByLabel("Body").fill(JSON.stringify({ email: someone(), password: PASSWORD }));
  await register.getByRole("button", { name: "Send" }).click();
  await register.getByText("201 Created").waitFor();

  await page.getByRole("link", { name: "Socket.IO events" }).click();
  const { operations } = await (await fetch(`${server.url}/api/asyncapi.json`)).json();
  await expect.poll(() => page.locator("summary").count()).toBe(Object.keys(operations).length);
  await page.getByText("session-update", { exact: true }).click();
  await page.getByText("Exactly one of state, patch, ops.").waitFor();
  await page.getByRole("link", { name: "Op", exact: true }).click();
  await expect.poll(() => page.locator("#Op").evaluate((shape) => shape.getBoundingClientRect().top < innerHeight)).toBe(true);
  const { violations } = await new AxeBuilder({ page }).analyze();
  expect(violations.filter(({ impact }) => ["serious", "critical"].includes(impact ?? ""))).toEqual([]);
  await page.getByRole("link", { name: "REST", exact: true }).click();
  await page.getByText("/api/auth/register", { exact: true }).waitFor();
});

test("a message for a device that is away waits for it", async () => {
  const page = await open();
  await register(page);
  const [laptop, phone] = [station(page, "laptop"), station(page, "phone")];
  await Promise.all([online(laptop), online(phone)]);

  await phone.getByRole("button", { name: "Demo phone offline" }).click();
  await laptop.getByLabel("Message to the phone").fill("See you at six");
  await laptop.getByRole("button", { name: "Send" }).click();
  await laptop.getByText("waits for it").waitFor();
  await phone.getByRole("button", { name: "Demo phone offline" }).click();
  await phone.getByText("See you at six").waitFor();
  await laptop.getByText("delivered").waitFor();
});

test("a revoked device stops in the other window", async () => {
  const page = await open();
  const email = await register(page);
  await online(station(page, "phone"));
  const second = await open();
  await logIn(second, email);
  // A page that is left while its sockets are still opening makes the browser complain.
  await Promise.all([online(station(second, "laptop")), online(station(second, "phone"))]);
  await second.getByRole("link", { name: "Devices" }).click();
  const row = second.getByRole("listitem").filter({ hasText: "Demo phone" }).filter({ hasText: "online" });
  await row.first().getByRole("button", { name: "Revoke Demo phone…" }).click();
  await second.getByRole("button", { name: "Revoke Demo phone", exact: true }).click();

  await station(page, "phone").getByRole("alert").filter({ hasText: "This device was removed" }).waitFor();
  // The account goes on.
  await online(station(page, "laptop"));
});

test("the session is browsed, edited and brought back to an earlier version", async () => {
  const page = await open();
  await register(page);
  await online(station(page, "laptop"));
  await page.getByRole("link", { name: "Session" }).click();
  await page.getByLabel("New key").fill("settings");
  await page.getByRole("button", { name: "Add" }).click();
  const state = page.getByLabel("State, as JSON");
  await state.fill('{"theme": "dark"}');
  await page.getByRole("button", { name: "Save" }).click();
  await page.getByText("version 2", { exact: true }).first().waitFor();
  await state.fill("{nonsense");
  await page.getByRole("button", { name: "Save" }).click();
  await page.getByText("That is not JSON.").waitFor();
  await page.getByRole("button", { name: "Restore version 1" }).click();
  await page.getByText("version 3", { exact: true }).first().waitFor();
  await expect.poll(() => page.getByLabel("State, as JSON").inputValue()).toBe("{}");
});

test("mistakes are said in words, and logging out everywhere ends the other window", async () => {
  const page = await open();
  const email = await register(page);
  const second = await open();
  await second.getByLabel("E-mail address").fill(email);
  await second.getByLabel("Password").fill(PASSWORD);
  await second.getByRole("button", { name: "Create account" }).click();
  await second.getByText("There is an account with this address already").waitFor();
  await second.getByLabel("Password").fill("not the password");
  await second.locator("form").getByRole("button", { name: "Log in" }).click();
  await second.getByText("do not belong together").waitFor();
  await second.getByLabel("Password").fill(PASSWORD);
  await second.locator("form").getByRole("button", { name: "Log in" }).click();
  await second.getByRole("heading", { name: "Two devices, one session" }).waitFor();

  await second.getByText(email).click();
  await second.getByRole("button", { name: "Log out everywhere" }).click();
  await second.getByRole("heading", { name: "Create an account" }).waitFor();
  await station(page, "laptop").getByRole("status").filter({ hasText: "Ended" }).waitFor();
});

test("everything can be reached and done from the keyboard", async () => {
  const page = await open();
  await page.keyboard.press("Tab");
  await expect.poll(() => page.evaluate(() => document.activeElement?.textContent)).toContain("Skip");
  await page.getByLabel("E-mail address").focus();
  await page.keyboard.type(someone());
  await page.keyboard.press("Tab");
  await page.keyboard.type(PASSWORD);
  await page.keyboard.press("Enter");
  await online(station(page, "phone"));
  await station(page, "phone").getByRole("button", { name: "Demo phone offline" }).focus();
  await page.keyboard.press("Space");
  await station(page, "phone").getByRole("status").filter({ hasText: "Offline" }).waitFor();
});

const looks: [string, Look][] = [
  ["light", { colorScheme: "light" }],
  ["dark", { colorScheme: "dark" }],
  ["phone", { colorScheme: "light", viewport: { width: 390, height: 844 } }],
];

test.each(looks)("axe finds no serious problem, and nothing is cut off: %s", async (name, look) => {
  const page = await open(look);
  const check = async (place: string) => {
    const { violations } = await new AxeBuilder({ page }).analyze();
    const serious = violations.filter((found) => ["serious", "critical"].includes(found.impact ?? ""));
    expect(serious.map((found) => `${place}: ${found.id}: ${found.nodes.map((node) => node.html).join(" ")}`)).toEqual([]);
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    expect(overflow, place).toBeLessThanOrEqual(0);
    if (!SHOTS) return;
    mkdirSync(SHOTS, { recursive: true });
    await page.screenshot({ path: join(SHOTS, `${name}-${place}.png`), fullPage: true });
  };
  await check("enter");
  await register(page);
  const [laptop, phone] = [station(page, "laptop"), station(page, "phone")];
  await Promise.all([online(laptop), online(phone)]);
  await append(note(laptop), "Buy stamps");
  await value(note(phone), "Buy stamps");
  await laptop.getByLabel("Message to the phone").fill("Tickets are in your inbox");
  await laptop.getByRole("button", { name: "Send" }).click();
  await phone.getByText("Tickets are in your inbox").waitFor();
  await check("demo");
  await page.getByRole("button", { name: "Show me: Disagree, and decide" }).click();
  await page.getByRole("group", { name: "Conflict on Demo phone" }).waitFor();
  await check("conflict");
  await page.getByRole("link", { name: "Devices" }).click();
  await page.getByRole("heading", { name: "Demo laptop" }).first().waitFor();
  await check("devices");
  await page.getByRole("link", { name: "Session" }).click();
  await page.getByRole("button", { name: /demo-note/ }).click();
  await page.getByRole("heading", { name: "Earlier versions" }).waitFor();
  await check("session");
});

test("the page brings its own policy, is small on the wire, and can be switched off", async () => {
  const page = await fetch(server.url, { headers: { "accept-encoding": "gzip" } });
  const policy = page.headers.get("content-security-policy") ?? "";
  expect(policy).toContain("default-src 'none'");
  expect(policy).not.toContain("unsafe");
  const script = /src="(\/assets\/[^"]+\.js)"/.exec(await page.text())?.[1] ?? "";
  const asset = await fetch(server.url + script, { headers: { "accept-encoding": "gzip" } });
  expect(asset.headers.get("content-encoding")).toBe("gzip");
  expect(asset.headers.get("cache-control")).toContain("immutable");
  const again = await fetch(server.url, { headers: { "if-none-match": page.headers.get("etag") ?? "" } });
  expect(again.status).toBe(304);
  expect((await fetch(`${server.url}/assets/none.js`)).status).toBe(404);
  const off = await serve({ CONSOLE: "off" });
  expect((await fetch(off.url)).status).toBe(404);
});
