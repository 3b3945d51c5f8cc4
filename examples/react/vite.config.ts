import { defineConfig } from "vite";

// The client is linked from this repository, where it has a React of its own for its tests; a page needs one only.
export default defineConfig({ resolve: { dedupe: ["react"] } });
