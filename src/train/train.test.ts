import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { prepare, TokenFile } from "../data/index.js";
import { getDevice } from "../devices/get-device.js";
import { bigramLoss, evaluate } from "../eval/index.js";
import { loadGPT } from "../models/index.js";
import { Scope } from "../tensor/scope.js";
import {
  Checkpoints,
  findCheckpoint,
  learningRateAt,
  type Metric,
  readMetrics,
  type TrainConfig,
  type TrainOptions,
  train,
  trainConfig,
  WindowOrder,
} from "./index.js";

const folder = mkdtempSync(join(tmpdir(), "train-test-"));
const at = (...path: string[]) => join(folder, ...path);
afterAll(() => rmSync(folder, { recursive: true }));

beforeAll(async () => {
  const words = ["the ", "cat ", "sat ", "on ", "a ", "mat.\n"];
  writeFileSync(at("text.txt"), Array.from({ length: 1500 }, (_, k) => words[(k * k + (k >> 2)) % 6]).join(""));
  await prepare({ sources: [at("text.txt")], out: at("data"), holdOut: 0.1, block: 256 });
});

const TINY: Partial<TrainConfig> = {
  ...{ nLayer: 1, nEmbd: 16, nHead: 2, headSize: 8, contextLength: 16, batchSize: 4, steps: 12, warmup: 2 },
  ...{ learningRate: 0.01, minLearningRate: 0.001, evalEvery: 4, evalBatches: 2, saveEvery: 4, sampleTokens: 0 },
  ...{ device: "wasm", threads: 2 },
};
const tiny = (out: string, rest: Partial<TrainConfig> = {}, more: Partial<TrainOptions> = {}) =>
  train({ data: at("data"), out: at(out), config: { ...TINY, ...rest }, ...more });
/** Aborts after a step. */
function abortAfter(step: number): Pick<TrainOptions, "signal" | "onMetric"> {
  const controller = new AbortController();
  return {
    signal: controller.signal,
    onMetric: (m) => {
      if (m.kind === "step" && m.step === step) controller.abort();
    },
  };
}
const losses = (out: string) =>
  readMetrics(at(out, "metrics.jsonl")).map((m: Metric) => [m.kind, m.step, m.kind === "sample" ? m.text : m.loss]);

test("a run learns and leaves a folder that tells all", async () => {
  const seen: Metric[] = [];
  const result = await tiny("plain", { steps: 60, evalEvery: 20, saveEvery: 20 }, { onMetric: (m) => seen.push(m) });
  expect(result).toMatchObject({ step: 60, stopped: "finished" });
  using trainFile = TokenFile.open(at("data", "train.bin"));
  using valFile = TokenFile.open(at("data", "val.bin"));
  expect(result.heldOutLoss!).toBeLessThan(3); // from log(256) = 5.5
  expect(readMetrics(at("plain", "metrics.jsonl"))).toEqual(seen);
  expect(seen.filter((m) => m.kind === "step").length).toBe(60);
  expect(readdirSync(at("plain")).sort()).toEqual(["checkpoints", "config.json", "metrics.jsonl", "report.html"]);
  expect(readdirSync(findCheckpoint(at("plain"))).sort()).toEqual([
    "config.json",
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
  ]);
  const page = readFileSync(result.report, "utf8");
  expect(/(src|href)=["']?http/.test(page)).toBe(false); // needs nothing from elsewhere
  for (const part of ["Gradient norm", "uPlot", "Tokens per second", "contextLength"]) {
    expect(page.includes(part), part).toBe(true);
  }
  const device = await getDevice("wasm");
  const { model } = await loadGPT(findCheckpoint(at("plain")), { device });
  const evaluation = await evaluate(model, valFile, { batchSize: 4, batches: 2 });
  expect(evaluation.loss).toBeCloseTo(result.heldOutLoss!, 5);
  expect(evaluation.perplexity).toBeCloseTo(Math.exp(evaluation.loss), 9);
  expect(evaluation.byPosition.length).toBe(16);
  expect(bigramLoss(trainFile, valFile)).toBeLessThan(1.5); // sixteen letters, mostly one after the other
});

test("a resumed run gives the same numbers bit for bit", async () => {
  const rest = { accumulate: 2, recompute: true, weightDecay: 0.3 };
  await tiny("straight", rest);
  const stopped = await tiny("stopped", rest, abortAfter(7));
  expect(stopped).toMatchObject({ step: 7, stopped: "aborted" });
  expect(stopped.checkpoint).toMatch(/step-00000007$/);
  const resumed = await train({ out: at("stopped"), resume: true });
  expect(resumed).toMatchObject({ step: 12, stopped: "finished" });
  expect(losses("stopped")).toEqual(losses("straight"));
  for (const file of ["model.safetensors", "optimizer.safetensors", "state.json"]) {
    const [a, b] = ["straight", "stopped"].map((run) => readFileSync(join(findCheckpoint(at(run)), file)));
    expect(a.equals(b), file).toBe(true);
  }
});

test("half precision learns too, and resumes bit for bit", async () => {
  const rest = { dtype: "bf16", steps: 30, evalEvery: 0, saveEvery: 0, learningRate: 0.003 };
  const result = await tiny("half", rest);
  expect(result.heldOutLoss!).toBeLessThan(4.2);
  await tiny("half-stopped", rest, abortAfter(11));
  await train({ out: at("half-stopped"), resume: true });
  expect(losses("half-stopped")).toEqual(losses("half"));
});

test("a run that died goes on from its last checkpoint", async () => {
  await tiny("died", {}, abortAfter(8));
  // As a crash leaves it: metrics ahead of the checkpoint, half a line, half a checkpoint.
  appendFileSync(at("died", "metrics.jsonl"), '{"kind":"step","step":9,"tokens":1,"loss":99}\n{"kind":"st');
  mkdirSync(at("died", "checkpoints", "writing-step-00000009"));
  writeFileSync(at("died", "checkpoints", "writing-step-00000009", "model.safetensors"), "half");
  await train({ out: at("died"), resume: true });
  await tiny("whole");
  expect(losses("died")).toEqual(losses("whole"));
  expect(readdirSync(at("died", "checkpoints")).some((name) => name.startsWith("writing"))).toBe(false);
});

test("only the last and the best checkpoint are kept", async () => {
  await tiny("kept", { steps: 12 });
  const names = readdirSync(at("kept", "checkpoints"));
  const index = JSON.parse(readFileSync(at("kept", "checkpoints", "index.json"), "utf8"));
  expect(new Set(names)).toEqual(new Set(["index.json", index.last, index.best]));
  expect(index.last).toBe("step-00000012");
  const evals = readMetrics(at("kept", "metrics.jsonl")).filter((m) => m.kind === "eval");
  const best = evals.reduce((a, b) => (b.loss < a.loss ? b : a));
  expect(index.best).toBe(`step-${String(best.step).padStart(8, "0")}`);
});

test("a loss that is no number stops the run, names the cause and harms no checkpoint", async () => {
  const run = tiny("wild", { learningRate: 1e12, minLearningRate: 1e12, warmup: 4, steps: 40, saveEvery: 1, clip: 0 });
  await expect(run).rejects.toThrow(
    /at step \d+ .*learning rate .* most likely too high; the last good checkpoint is .*step-/,
  );
  const device = await getDevice("wasm");
  const { model } = await loadGPT(findCheckpoint(at("wild")), { device });
  for (const tensor of model.parameters().values()) expect((await tensor.data()).every(Number.isFinite)).toBe(true);
});

test("damaged and missing files are named, and a run folder is not overwritten", async () => {
  await tiny("hurt", { steps: 4 });
  await expect(tiny("hurt")).rejects.toThrow(/already holds a run/);
  await expect(train({ out: at("nothing"), resume: true })).rejects.toThrow(/cannot resume/);
  await expect(train({ out: at("hurt"), resume: true, config: { batchSize: 5 } })).rejects.toThrow(
    /keeps its batchSize of 4, got 5/,
  );
  const last = findCheckpoint(at("hurt"));
  const more = { out: at("hurt"), resume: true, config: { steps: 6 } };
  const restore = readFileSync(join(last, "optimizer.safetensors"));
  truncateSync(join(last, "optimizer.safetensors"), 200);
  await expect(train(more)).rejects.toThrow(/cannot read .*optimizer\.safetensors/);
  writeFileSync(join(last, "optimizer.safetensors"), restore);
  writeFileSync(join(last, "state.json"), '{"version":1}');
  await expect(train(more)).rejects.toThrow(/state\.json is not the state/);
  expect(existsSync(last)).toBe(true);
});

test("options are checked by name and range", () => {
  expect(trainConfig({ steps: 5 })).toMatchObject({ steps: 5, batchSize: 8 });
  expect(() => trainConfig({ setps: 5 } as object)).toThrow(/no option "setps"/);
  expect(() => trainConfig({ batchSize: 0 })).toThrow(/batchSize must be an integer of 1 or more, got 0/);
  expect(() => trainConfig({ beta2: 1.5 })).toThrow(/beta2 must be a number from 0 to 1/);
  expect(() => trainConfig({ attention: "linear" })).toThrow(/attention must be one of power, softmax/);
  expect(() => trainConfig({ steps: 2.5 })).toThrow(/integer/);
  expect(() => trainConfig({ bias: 1 as unknown as boolean })).toThrow(/true or false/);
});

test("the learning rate rises, falls by a cosine and stays", () => {
  const plan = { peak: 1, floor: 0.1, warmup: 4, steps: 104 };
  expect([0, 3, 4, 54, 104, 500].map((step) => Number(learningRateAt(step, plan).toFixed(6)))).toEqual([
    0.25, 1, 1, 0.55, 0.1, 0.1,
  ]);
});

test("windows of an epoch are all of them, once each, in an order of the seed", () => {
  const order = new WindowOrder(1000, 11, 7);
  expect(order.windows).toBe(99);
  const epoch = (n: number, seed = 7) =>
    Array.from({ length: 99 }, (_, k) => new WindowOrder(1000, 11, seed).start(99 * n + k));
  const first = epoch(0);
  expect(new Set(first).size).toBe(99);
  expect(Math.max(...first) + 11).toBeLessThanOrEqual(1000);
  expect(new Set(first.map((start) => start % 10)).size).toBe(1);
  expect(epoch(0)).toEqual(first);
  expect(epoch(1)).not.toEqual(first);
  expect(epoch(0, 8)).not.toEqual(first);
  const sorted = [...first].sort((a, b) => a - b);
  expect(first).not.toEqual(sorted);
  expect(() => new WindowOrder(10, 11, 7)).toThrow(/at least 11 tokens, the data has 10/);
});

test("memory is flat from step to step", async () => {
  const device = await getDevice("wasm", { threads: 1 });
  const { GPT, gptConfig } = await import("../models/index.js");
  const { AdamW } = await import("../nn/adamw.js");
  const model = new GPT(gptConfig("tiny", { vocabSize: 64, nLayer: 1, contextLength: 8 }), { device });
  const optimizer = new AdamW(model.parameters(), {
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weightDecay: 0.1,
    clip: 1,
  });
  const used: number[] = [];
  for (let step = 0; step < 1000; step++) {
    using _ = new Scope();
    const ids = model.ids(
      Int32Array.from({ length: 8 }, (_, k) => (step * 7 + k * 3) % 64),
      [1, 8],
    );
    model.loss(ids, ids).backward();
    optimizer.update(1e-3, optimizer.squaredNorm());
    model.clearGrad();
    _.end();
    used.push(device.memory().used);
  }
  expect(new Set(used.slice(10)).size).toBe(1);
  device.dispose();
});

test("a checkpoint of the same step replaces an older one of another run", async () => {
  const checkpoints = new Checkpoints(at("kept"));
  checkpoints.clear();
  expect(() => findCheckpoint(at("kept"))).toThrow(/no checkpoint yet/);
  expect(() => findCheckpoint(at("absent"))).toThrow(/no folder/);
});
