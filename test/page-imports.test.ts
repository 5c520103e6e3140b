import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { expect, test } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));

test.each(["nn", "models", "generate"])("power-attention/%s loads nothing of Node in a page", async (entry) => {
  const { metafile } = await build({
    entryPoints: [`${root}src/${entry}/index.ts`],
    ...{ bundle: true, write: false, metafile: true, format: "esm", platform: "browser", splitting: true },
    ...{ outdir: "out", external: ["node:*"], logLevel: "silent" },
  });
  // What loads with the entry; import() inside functions, for files and tokenizers, makes chunks of its own.
  const loaded = new Set<string>();
  const visit = (name: string) => {
    if (loaded.has(name)) return;
    loaded.add(name);
    for (const { path, kind } of metafile.outputs[name]?.imports ?? []) if (kind === "import-statement") visit(path);
  };
  const first = Object.entries(metafile.outputs).find(([, { entryPoint }]) =>
    entryPoint?.endsWith(`${entry}/index.ts`),
  );
  visit(first![0]);
  expect([...loaded].filter((name) => name.startsWith("node:"))).toEqual([]);
  const bytes = [...loaded].reduce((n, name) => n + (metafile.outputs[name]?.bytes ?? 0), 0);
  expect(bytes).toBeGreaterThan(10_000);
  expect(bytes).toBeLessThan(1_000_000); // the tables of a tokenizer are not among it
});
