// Builds the package twice: modules for bundlers, browsers and Node, and CommonJS for who still requires it.
import { execFileSync } from "node:child_process";
import { rmSync, writeFileSync } from "node:fs";

rmSync("dist", { recursive: true, force: true });
const tsc = (outDir, ...more) =>
  execFileSync("npx", ["tsc", "--rootDir", "src", "--outDir", outDir, "-p", "tsconfig.build.json", ...more], {
    stdio: "inherit",
  });
tsc("dist/esm");
tsc("dist/cjs", "--module", "CommonJS", "--moduleResolution", "Node10", "--ignoreDeprecations", "5.0");
writeFileSync("dist/cjs/package.json", '{"type":"commonjs"}\n');
