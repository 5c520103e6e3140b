import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { prepare } from "../src/data/index.js";
import { findCheckpoint, type TrainConfig, train } from "../src/train/index.js";
import { describeOnGpu } from "./devices.js";

const root = fileURLToPath(new URL("..", import.meta.url));
let folder: string;
const at = (...path: string[]) => join(folder, ...path);

const MODEL = { nLayer: 1, nEmbd: 16, nHead: 2, headSize: 8, contextLength: 16, chunkSize: 8, batchSize: 2 };
const RUN: Partial<TrainConfig> = { ...MODEL, steps: 6, warmup: 1, evalEvery: 3, evalBatches: 1, sampleTokens: 0 };

/** Runs a command as it ships, on the GPU without being asked to: the environment makes it the default. */
async function run(program: string, ...args: string[]): Promise<{ stdout: string; stderr: string }> {
  const env = { ...process.env, POWER_ATTENTION_DEVICE: "webgpu" };
  return promisify(execFile)(process.execPath, [join(root, "dist/src/cli", program), ...args], { cwd: folder, env });
}

const flags = (config: object) =>
  Object.entries(config).flatMap(([name, value]) => [
    `--${name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}`,
    String(value),
  ]);

describeOnGpu("the commands on webgpu", () => {
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), "webgpu-cli-test-"));
    const words = ["the ", "cat ", "sat ", "on ", "a ", "mat.\n"];
    writeFileSync(at("text.txt"), Array.from({ length: 600 }, (_, k) => words[(k * k + (k >> 2)) % 6]).join(""));
    await prepare({ sources: [at("text.txt")], out: at("data"), holdOut: 0.1, block: 256 });
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  test.each(["f32", "f16", "bf16"])("a resumed run is the uninterrupted one, bit for bit, %s", async (dtype) => {
    const config = { ...RUN, dtype, device: "webgpu" };
    const paths = { data: at("data"), out: at(`straight-${dtype}`) };
    const straight = await train({ ...paths, config });
    const stopped = { ...paths, out: at(`stopped-${dtype}`) };
    const controller = new AbortController();
    const first = await train({
      ...{ ...stopped, config, signal: controller.signal },
      onMetric: ({ step }) => step === 2 && controller.abort(),
    });
    expect(first.stopped).toBe("aborted");
    expect([2, 3]).toContain(first.step); // an update may be on its way
    const second = await train({ ...stopped, resume: true });
    expect(second).toMatchObject({ stopped: "finished", step: 6, heldOutLoss: straight.heldOutLoss });
    for (const file of ["model.safetensors", "optimizer.safetensors"]) {
      const [a, b] = [paths.out, stopped.out].map((out) => readFileSync(join(findCheckpoint(out), file)));
      expect(a.equals(b), file).toBe(true);
    }
  });

  test("training gives wasm's losses", async () => {
    const losses = async (device: string) => {
      const found: number[] = [];
      await train({
        ...{ data: at("data"), out: at(`on-${device}`), config: { ...RUN, device } },
        onMetric: (metric) => metric.kind === "step" && found.push(metric.loss),
      });
      return found;
    };
    const [gpu, cpu] = [await losses("webgpu"), await losses("wasm")];
    expect(gpu).toHaveLength(6);
    for (const [step, loss] of gpu.entries()) expect(loss).toBeCloseTo(cpu[step], 4);
  });

  test("train, generate, eval and info work by themselves", async () => {
    const config = { ...RUN, sampleTokens: 8 };
    const trained = await run("main.js", "train", "data", "--out", "run", ...flags(config));
    expect(trained.stdout).toMatch(/webgpu \(/);
    expect(trained.stdout).toContain("finished after step 6");

    const generate = (...args: string[]) =>
      run("main.js", "generate", "run", "--max-tokens", "12", "--seed", "3", ...args);
    const first = await generate("the cat", "--stats", "--save-state", "state.safetensors");
    expect(JSON.parse(/^\{.*\}$/m.exec(first.stderr)![0])).toMatchObject({
      ...{ tokens: 12, end: "maxTokens", device: expect.stringMatching(/^webgpu/) },
    });
    expect((await generate("the cat")).stdout).toBe(first.stdout);
    expect((await generate("--load-state", "state.safetensors")).stdout).toBe(first.stdout);

    const onGpu = JSON.parse((await run("main.js", "eval", "run", "data", "--batch-size", "2", "--json")).stdout);
    const onCpu = JSON.parse((await run("main.js", "eval", "run", "data", "--device", "wasm", "--json")).stdout);
    expect(onGpu.loss).toBeCloseTo(onCpu.loss, 4);
    expect(onGpu.byPosition).toHaveLength(16);

    const { stdout } = await run("main.js", "info");
    expect(stdout).toMatch(/^default: webgpu \(named by POWER_ATTENTION_DEVICE\)$/m);
    expect(stdout).toMatch(/^webgpu: webgpu \(.+\)$/m);
  });

  test("npm start trains and writes", async () => {
    writeFileSync(at("more.txt"), "the cat sat on a mat.\n".repeat(3000));
    const args = [
      "more.txt",
      "--extensions",
      ".txt",
      "--steps",
      "1",
      "--out",
      "start",
      "--prompt",
      "the ",
      "--tokens",
      "20",
    ];
    const { stdout } = await run("start.js", ...args);
    expect(stdout).toMatch(
      /2\. Training for 1 updates[\s\S]*webgpu \([\s\S]*held-out loss \d\.\d+[\s\S]*\d+ tokens\/s/,
    );
  });
});
