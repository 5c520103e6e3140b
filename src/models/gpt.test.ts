import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { useDevices, worst } from "../../test/compare-devices.js";
import { Generator } from "../tensor/random.js";
import { noGrad } from "../tensor/tape.js";
import { GPT, GPT_SIZES, type GPTConfig, gptConfig, loadGPT, saveGPT } from "./index.js";

const devices = useDevices();
const folder = mkdtempSync(join(tmpdir(), "gpt-test-"));
afterAll(() => rmSync(folder, { recursive: true }));

const TINY = { vocabSize: 256, contextLength: 8, nLayer: 2, nEmbd: 8, nHead: 2, headSize: 4 };
const make = (rest: Partial<GPTConfig>, device = devices.oracle(), seed = 1) =>
  new GPT(gptConfig("tiny", { ...TINY, ...rest }), { device, generator: new Generator(seed) });
const IDS = [5, 80, 7, 255, 0, 12, 5, 5];
const TARGETS = [80, 7, 255, 0, 12, 5, 5, 9];

test("losses and gradients of wasm are the oracle's", async () => {
  for (const rest of [
    {},
    { positions: "learned", bias: true, norm: "rms" },
    { positions: "none", degree: 1 },
  ] as const) {
    const results: Record<string, number[]>[] = [];
    for (const device of [devices.oracle(), devices.wasm()]) {
      const model = make(rest, device);
      const loss = model.loss(model.ids(IDS, [2, 4]), model.ids(TARGETS, [2, 4]));
      const result: Record<string, number[]> = { loss: [await loss.item()] };
      loss.backward();
      for (const [name, { grad }] of model.parameters()) result[name] = [...(await grad!.data())];
      results.push(result);
    }
    expect(results[0].loss[0]).toBeGreaterThan(Math.log(256) - 0.2);
    for (const [name, want] of Object.entries(results[0]))
      expect(worst(results[1][name], want), name).toBeLessThan(1e-4);
  }
});

test("loss, token losses and logits agree, and recomputing changes nothing", async () => {
  const model = make({});
  const [ids, targets] = [model.ids(IDS, [2, 4]), model.ids(TARGETS, [2, 4])];
  const loss = await model.loss(ids, targets).item();
  const rows = [...(await noGrad(() => model.tokenLosses(ids, targets)).data())];
  expect(rows.reduce((a, b) => a + b, 0) / 8).toBeCloseTo(loss, 12);
  const logits = await noGrad(() => model.forward(ids)).data();
  const first = [...logits.slice(0, 256)];
  expect(Math.log(first.reduce((sum, x) => sum + Math.exp(x), 0)) - first[80]).toBeCloseTo(rows[0], 10);
  expect(await model.loss(ids, targets, { recompute: true }).item()).toBe(loss);
});

test("tokens one by one give the logits of the whole", async () => {
  for (const rest of [
    {},
    { positions: "learned" },
    { attention: "softmax" },
    { disableGating: true, qheadRatio: 2 },
  ] as const) {
    const model = make(rest);
    const whole = [...(await noGrad(() => model.forward(model.ids(IDS, [1, 8]), { last: true })).data())];
    const caches = model.caches(1);
    let last: number[] = [];
    for (const id of IDS)
      last = [...(await noGrad(() => model.forward(model.ids([id], [1, 1]), { caches, last: true })).data())];
    expect(worst(last, whole)).toBeLessThan(1e-6);
  }
});

test("a model is saved and loaded whole, and refuses what does not fit", async () => {
  const model = make({ bias: true });
  await saveGPT(folder, model, { kind: "bytes" });
  const loaded = await loadGPT(folder, { device: devices.oracle() });
  expect(loaded.model.config).toEqual(model.config);
  expect(loaded.model.training).toBe(false);
  for (const [name, tensor] of model.parameters()) {
    expect([...(await loaded.model.parameters().get(name)!.data())]).toEqual([...(await tensor.data())]);
  }
  const path = join(folder, "config.json");
  const file = JSON.parse(readFileSync(path, "utf8"));
  const load = () => loadGPT(folder, { device: devices.oracle() });
  const change = (config: object) =>
    writeFileSync(path, JSON.stringify({ ...file, config: { ...file.config, ...config } }));
  change({ nLayer: 3 });
  await expect(load()).rejects.toThrow(/missing blocks\.2/);
  change({ nEmbd: 16 });
  await expect(load()).rejects.toThrow(/must have shape/);
  change({ vocabSize: 10 });
  await expect(load()).rejects.toThrow(/vocabSize 10 and a tokenizer of 256/);
  change({});
  const weights = join(folder, "model.safetensors");
  truncateSync(weights, 1000);
  await expect(load()).rejects.toThrow(/cannot read .*model\.safetensors/);
  writeFileSync(path, "{");
  await expect(load()).rejects.toThrow(/cannot read .*config\.json/);
});

test("sizes are what their names say, and nonsense is refused", () => {
  const blocks = (name: keyof typeof GPT_SIZES) => 12 * GPT_SIZES[name].nLayer * GPT_SIZES[name].nEmbd ** 2;
  for (const [name, millions] of [
    ["1M", 1],
    ["5M", 5],
    ["20M", 20],
  ] as const)
    expect(Math.abs(blocks(name) / 1e6 / millions - 1)).toBeLessThan(0.1);
  const { nLayer, nEmbd, nHead } = GPT_SIZES["124M"];
  expect([nLayer, nEmbd, nHead]).toEqual([12, 768, 12]);
  expect(() => make({ nLayer: 0 })).toThrow(/nLayer must be an integer of at least 1/);
  expect(() => make({ positions: "absolute" as "none" })).toThrow(/positions must be one of rotary, learned, none/);
  expect(() => gptConfig("huge" as "tiny", { vocabSize: 2 })).toThrow(/size must be one of tiny/);
  const learned = make({ positions: "learned" });
  expect(() => learned.ids([0, -1, 1e6], [3])).toThrow(
    /GPT\.ids: token ids must be from 0 to .*, got 1000000 at 2; use/,
  );
  expect(() => learned.ids([-2], [1])).toThrow(/got -2 at 0/);
  expect(() => learned.forward(learned.ids(new Int32Array(9), [1, 9]))).toThrow(
    /learned positions end at contextLength 8/,
  );
});
