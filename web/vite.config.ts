import { readFileSync } from "node:fs";

import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

import manifest from "./package.json" with { type: "json" };

/** Puts the licences of what is bundled beside the page. */
const licences: Plugin = {
  name: "licences",
  generateBundle() {
    const texts = Object.keys(manifest.dependencies).map((name) => {
      const folder = `node_modules/${name}`;
      const text = ["LICENSE", "LICENSE.md"].flatMap((file) => {
        try {
          return [readFileSync(`${folder}/${file}`, "utf-8").trim()];
        } catch {
          return [];
        }
      })[0];
      if (!text) throw new Error(`${folder} has no licence`);
      return `${name}\n${"=".repeat(name.length)}\n\n${text}\n`;
    });
    this.emitFile({ type: "asset", fileName: "licences.txt", source: texts.join("\n\n") });
  },
};

// The build is committed, so it must depend on nothing but the sources: names carry content hashes, no dates.
export default defineConfig({
  // The page may be served below any path.
  base: "./",
  plugins: [licences],
  build: {
    outDir: "../src/deepwell/server/static",
    emptyOutDir: true,
    target: "es2022",
    // Browsers that know light-dark(); older targets would have it rewritten.
    cssTarget: ["chrome123", "firefox120", "safari17.5"],
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rolldownOptions: { input: ["index.html", "books.html", "admin.html"] },
  },
  server: {
    proxy: { "^/(v1|admin|user)/": process.env["DEEPWELL_URL"] ?? "http://127.0.0.1:8000" },
  },
  test: { environment: "happy-dom", include: ["tests/*.test.ts"] },
});
