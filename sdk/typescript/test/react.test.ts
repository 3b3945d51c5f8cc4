// @vitest-environment jsdom
// The hooks, rendered in a DOM, against a real node.
import { act, cleanup, render, screen, waitFor } from "@testing-library/react";
import { createElement } from "react";
import { renderToString } from "react-dom/server";
import { afterEach, expect, test } from "vitest";

import { CrossDeviceSync, MemoryStorage } from "../src/index.js";
import { TandemProvider, useConnectionStatus, useDevices, useRealtime, useSession } from "../src/react.js";
import { serve } from "../../../tests/support/server.mjs";
import { closeAll, ends } from "./device.js";

afterEach(async () => {
  cleanup();
  await closeAll();
});

function Counter({ name }: { name: string }) {
  const { state, pending, ops } = useSession<{ n: number }>("counter");
  const { status } = useConnectionStatus();
  const devices = useDevices();
  const wave = useRealtime<string>("wave", (payload) => {
    document.title = `${name} saw ${payload}`;
  });
  return createElement(
    "section",
    { "aria-label": name },
    `${status} ${devices.length} devices, n=${state?.n ?? "none"}${pending ? " pending" : ""}`,
    createElement("button", { onClick: () => void ops([{ op: "inc", path: "/n", value: 1 }]) }, `count on ${name}`),
    createElement("button", { onClick: () => wave("a hand") }, `wave from ${name}`),
  );
}

test("what one provider's components change another's show", async () => {
  const server = await serve();
  const { token } = await server.register();
  const device = (name: string) => {
    return ends(new CrossDeviceSync(token, { name }, { url: server.url, storage: new MemoryStorage() }));
  };
  const [phone, laptop] = [device("phone"), device("laptop")];
  render(
    createElement(
      "main",
      null,
      createElement(TandemProvider, { client: phone }, createElement(Counter, { name: "phone" })),
      createElement(TandemProvider, { client: laptop }, createElement(Counter, { name: "laptop" })),
    ),
  );
  await waitFor(() => {
    expect(screen.getByLabelText("phone").textContent).toContain("online 2 devices");
    expect(screen.getByLabelText("laptop").textContent).toContain("online 2 devices");
  });

  await act(async () => screen.getByText("count on phone").click());
  await act(async () => screen.getByText("count on laptop").click());

  await waitFor(() => {
    for (const name of ["phone", "laptop"]) {
      const text = screen.getByLabelText(name).textContent;
      expect(text).toContain("n=2");
      expect(text).not.toContain("pending");
    }
  });
  await act(async () => screen.getByText("wave from phone").click());
  await waitFor(() => expect(document.title).toBe("laptop saw a hand"));
});

test("on a server, where nothing is known, it renders all the same", () => {
  const client = new CrossDeviceSync("a.b.c", {}, { url: "http://127.0.0.1:1", storage: new MemoryStorage(), autoConnect: false });
  ends(client);
  const html = renderToString(createElement(TandemProvider, { client }, createElement(Counter, { name: "phone" })));
  expect(html).toContain("connecting 0 devices, n=none");
});
