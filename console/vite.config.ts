// One page, its parts with hashed names under /assets. Nothing is inlined: the server's Content-Security-Policy allows
// no inline script or style.
import { defineConfig } from "vite";
// @ts-expect-error plain JavaScript
import { compressed } from "./tools/compress.mjs";

const server = process.env.TANDEM_URL ?? "http://localhost:3001";

export default defineConfig({
  plugins: [compressed()],
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2022",
    reportCompressedSize: false,
  },
  server: { proxy: { "/api": server, "/socket.io": { target: server, ws: true } } },
});
