import { defineConfig } from "vitest/config";

// The build is committed, so it must depend on nothing but the sources: names carry content hashes, no dates.
export default defineConfig({
  build: {
    outDir: "../src/deepwell/server/static",
    emptyOutDir: true,
    target: "es2022",
    // Browsers that know light-dark(); older targets would have it rewritten.
    cssTarget: ["chrome123", "firefox120", "safari17.5"],
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: {
    proxy: { "/v1": process.env["DEEPWELL_URL"] ?? "http://127.0.0.1:8000" },
  },
  test: { environment: "happy-dom", include: ["tests/*.test.ts"] },
});
