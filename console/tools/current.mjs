// The committed build is what these sources build: builds anew beside it and compares.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const fresh = mkdtempSync(join(tmpdir(), "tandem-console-"));
try {
  execFileSync("npx", ["vite", "build", "--outDir", fresh, "--emptyOutDir", "--logLevel", "error"], { stdio: "inherit" });
  const files = (folder) =>
    readdirSync(folder, { recursive: true })
      .filter((name) => statSync(join(folder, name)).isFile())
      .sort();
  const [built, kept] = [files(fresh), files("dist")];
  const differ = [...new Set([...built, ...kept])].filter(
    (name) => !built.includes(name) || !kept.includes(name) || !readFileSync(join(fresh, name)).equals(readFileSync(join("dist", name))),
  );
  if (differ.length > 0) {
    console.error(`console/dist is not what its sources build (npm run build): ${differ.join(", ")}`);
    process.exit(1);
  }
} finally {
  rmSync(fresh, { recursive: true, force: true });
}
