import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));

test("the tutorial's module is the example's, and the example learns", () => {
  const tutorial = readFileSync(`${root}docs/tutorial.md`, "utf8");
  const example = readFileSync(`${root}examples/own-module.ts`, "utf8")
    .replace('"../src/index.js"', '"power-attention"')
    .replace('"../src/nn/index.js"', '"power-attention/nn"');
  const blocks = [...tutorial.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code]) => code.trim());
  expect(`${blocks[1]}\n\n${blocks[2]}`).toBe(example.trim());
  const out = execFileSync(process.execPath, [`${root}dist/examples/own-module.js`], { encoding: "utf8" });
  const losses = [...out.matchAll(/loss ([\d.]+)/g)].map(([, loss]) => Number(loss));
  expect(losses[0]).toBeGreaterThan(1.9);
  expect(losses[2]).toBeLessThan(0.2);
});
