import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { prepare } from "../src/data/index.js";
import { readMetrics, type TrainConfig, type TrainOptions, train } from "../src/train/index.js";
import { describeOnGpu } from "./devices.js";

const folder = mkdtempSync(join(tmpdir(), "webgpu-train-test-"));
const at = (...path: string[]) => join(folder, ...path);
afterAll(() => rmSync(folder, { recursive: true }));

beforeAll(async () => {
  const words = ["the ", "cat ", "sat ", "on ", "a ", "mat.\n"];
  writeFileSync(at("text.txt"), Array.from({ length: 1500 }, (_, k) => words[(k * k + (k >> 2)) % 6]).join(""));
  await prepare({ sources: [at("text.txt")], out: at("data"), holdOut: 0.1, block: 256 });
});

const TINY: Partial<TrainConfig> = {
  ...{ nLayer: 1, nEmbd: 16, nHead: 2, headSize: 8, contextLength: 16, batchSize: 4, accumulate: 2, steps: 14 },
  ...{
    learningRate: 0.01,
    minLearningRate: 0.001,
    warmup: 2,
    evalEvery: 5,
    evalBatches: 2,
    saveEvery: 5,
    sampleTokens: 0,
  },
  ...{ device: "webgpu", dtype: "f16" },
};
const run = (out: string, more: Partial<TrainOptions> = {}) =>
  train({ data: at("data"), out: at(out), config: TINY, ...more });
const losses = (out: string) =>
  readMetrics(at(out, "metrics.jsonl")).flatMap((m) =>
    "loss" in m ? [{ kind: m.kind, step: m.step, loss: m.loss }] : [],
  );

describeOnGpu("training on webgpu", () => {
  test("updates queued ahead: every step is told in order, and a stopped run goes on bit for bit", async () => {
    const whole = await run("whole");
    expect(whole).toMatchObject({ step: 14, stopped: "finished" });
    const steps = losses("whole").filter(({ kind }) => kind === "step");
    expect(steps.map(({ step }) => step)).toEqual(Array.from({ length: 14 }, (_, k) => k + 1));
    expect(whole.heldOutLoss!).toBeLessThan(4.9); // from log(256) = 5.5
    const controller = new AbortController();
    const stopped = await run("stopped", {
      signal: controller.signal,
      onMetric: (m) => {
        if (m.kind === "step" && m.step === 7) controller.abort();
      },
    });
    // The update that was queued already is finished too.
    expect(stopped).toMatchObject({ step: 8, stopped: "aborted" });
    expect(await train({ out: at("stopped"), resume: true })).toMatchObject({ step: 14, stopped: "finished" });
    expect(losses("stopped")).toEqual(losses("whole"));
  });
});
