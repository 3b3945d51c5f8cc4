// A vite plugin: a gzip form beside every text file of the build, always the same for the same text.
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";

export function compressed() {
  let folder = "dist";
  return {
    name: "compressed",
    configResolved(config) {
      folder = config.build.outDir;
    },
    closeBundle() {
      for (const name of readdirSync(folder, { recursive: true })) {
        if (/\.(html|css|js|svg)$/.test(name)) {
          const bytes = gzipSync(readFileSync(join(folder, name)), { level: 9 });
          bytes[9] = 255; // The system that made it: any.
          writeFileSync(join(folder, `${name}.gz`), bytes);
        }
      }
    },
  };
}
