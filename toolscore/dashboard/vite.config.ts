import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import react from "@vitejs/plugin-react";
import { defineConfig, type Plugin } from "vite";

const GATEWAY = process.env["TOOLSCORE_URL"] ?? "http://127.0.0.1:8082";
const WORTH_PACKING_BYTES = 512;

const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url));

/** Lays each file beside itself in gzip and brotli, so that the gateway packs nothing. */
function packed(): Plugin {
  return {
    name: "packed",
    apply: "build",
    enforce: "post",
    writeBundle({ dir }, bundle) {
      for (const name of Object.keys(bundle)) {
        const file = join(dir ?? "dist", name);
        const plain = readFileSync(file);
        if (plain.length < WORTH_PACKING_BYTES) continue;
        writeFileSync(`${file}.br`, brotliCompressSync(plain));
        writeFileSync(`${file}.gz`, gzipSync(plain, { level: constants.Z_BEST_COMPRESSION }));
      }
    },
  };
}

export default defineConfig({
  base: "/ui/",
  plugins: [react(), packed()],
  resolve: {
    alias: [
      // Descriptions are a stranger's: they are shown as text, and not read as markup.
      { find: "markdown-to-jsx/react", replacement: here("src/ui/plain.tsx") },
      { find: "fast-uri", replacement: here("src/ui/uri.ts") },
      // What no form of ours has: layouts, stars, and what the library needs for its own tests.
      { find: /^(\.\/(Layout\w+Field|RatingWidget)\.js|@rjsf\/validator-ajv8)$/, replacement: here("src/ui/plain.tsx") },
    ],
  },
  build: { assetsInlineLimit: 0, modulePreload: { polyfill: false }, target: "es2022" },
  server: { proxy: { "/api": { target: GATEWAY, ws: true }, "/health": GATEWAY, "/execute_tool": GATEWAY } },
});
