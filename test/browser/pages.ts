import { existsSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { build } from "esbuild";
import { chromium, type Page } from "playwright-core";

export const executablePath = process.env["CHROMIUM"] ?? "/usr/bin/chromium";
export const missing = !existsSync(executablePath);

/** What a page needs for threads. */
const ISOLATION = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };
const POLICY = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'";
const QUIET = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-sync"];

export interface Pages {
  /** A page that runs the entry: with "isolated" in its query it may have threads, with "policy" no blob workers. */
  open(query?: string): Promise<Page>;
  close(): Promise<void>;
}

/** Bundles a file of this folder for the browser, serves it, and starts Chromium. */
export async function startPages(entry: string, flags: string[]): Promise<Pages> {
  const { outputFiles } = await build({
    entryPoints: [new URL(entry, import.meta.url).pathname],
    bundle: true,
    format: "esm",
    platform: "browser",
    target: "es2022",
    external: ["node:*", "gpt-tokenizer", "gpt-tokenizer/*", "@huggingface/tokenizers"], // import() that no test reaches
    write: false,
    logLevel: "silent",
  });
  const server = createServer(({ url }, response) => {
    const { pathname, searchParams } = new URL(url ?? "/", "http://localhost");
    if (searchParams.has("isolated"))
      for (const [name, value] of Object.entries(ISOLATION)) response.setHeader(name, value);
    if (searchParams.has("policy")) response.setHeader("Content-Security-Policy", POLICY);
    if (pathname === "/page.js") {
      response.setHeader("Content-Type", "text/javascript").end(outputFiles[0].text);
    } else {
      response.setHeader("Content-Type", "text/html");
      response.end('<!doctype html><title>test</title><script type="module" src="/page.js?isolated"></script>');
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  // Chromium brings its own SwiftShader, whichever driver the tests in Node use.
  const { VK_ICD_FILENAMES: _, VK_DRIVER_FILES: __, ...env } = process.env;
  const browser = await chromium.launch({
    executablePath,
    args: [...QUIET, ...flags],
    env: env as Record<string, string>,
  });
  return {
    async open(query = "") {
      const page = await browser.newPage();
      await page.goto(`${origin}/?${query}`);
      await page.waitForFunction(() => "ready" in globalThis);
      return page;
    },
    async close() {
      await browser.close();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
