import { execFileSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { powerBytes, quadraticOperations } from "../bench/arithmetic.js";
import { barPlot } from "../bench/bar-plot.js";
import { attempt, Context } from "../bench/context.js";
import { captioned, draw } from "../bench/draw.js";
import { normError } from "../bench/gpu/accuracy.js";
import { gpuForward } from "../bench/gpu/forward.js";
import { FastGenerator, fastBF16, fastGates, fastInputs, fastNormals, roundToBF16 } from "../bench/gpu/inputs.js";
import { trainingOperations } from "../bench/gpu/model.js";
import { floorOf, ratesOf } from "../bench/gpu/rates.js";
import type { GpuDescription } from "../bench/machine.js";
import { compare, heading, merge, type Report, toMarkdown, toText } from "../bench/report.js";
import { throughputByContext } from "../bench/throughput-by-context.js";
import { stepOperations } from "../bench/training-step.js";
import { expandedDim, getDevice } from "../src/index.js";
import { gptConfig } from "../src/models/index.js";
import { fromBF16Bits, roundTo } from "../src/tensor/dtype.js";
import { describeOnGpu } from "./devices.js";

const bench = (...args: string[]) =>
  execFileSync(process.execPath, ["dist/bench/run.js", ...args], { encoding: "utf8", stdio: "pipe" });

const gpu: GpuDescription = {
  ...{ adapter: "NVIDIA H200", vendor: "nvidia hopper", driver: "570.1", features: [], matrixUnits: "16×16×16" },
  ...{ timestamps: true, boundsChecks: true },
};

function report(value: number, rest: Partial<Report> = {}): Report {
  const figure = { name: "T=65,536, GPU time", value, unit: "ms", atMost: 2.9, aim: 1.6, floor: 0.44 };
  return {
    ...{
      date: "today",
      commit: "abc",
      cpu: "a CPU",
      node: "24.1.0",
      threads: 8,
      device: "webgpu (H200)",
      quick: false,
    },
    ...{ gpu, versions: { node: "24.1.0", webgpu: "0.6.2" } },
    results: [{ name: "gpu-forward", question: "How long?", target: "2.9 ms", figures: [figure] }],
    ...rest,
  };
}

describe("bench, GPU", () => {
  it("draws normal values fast, the same as f32 and as bf16", () => {
    const values = fastNormals(100_001, 3);
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    const variance = values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length;
    expect(Math.abs(mean)).toBeLessThan(0.02);
    expect(Math.abs(variance - 1)).toBeLessThan(0.02);
    expect(fastNormals(10, 3)).toEqual(values.slice(0, 10));
    expect(fastNormals(10, 4)).not.toEqual(values.slice(0, 10));
    const rounded = roundToBF16(values.slice());
    expect(Array.from(fastBF16(1000, 3), fromBF16Bits)).toEqual([...rounded.subarray(0, 1000)]);
    for (let k = 0; k < 1000; k++) expect(rounded[k]).toBe(roundTo("bf16", values[k]));
    const gates = fastGates(1000, 1, 2);
    expect(Math.max(...gates)).toBeLessThanOrEqual(0);
    expect(Math.exp(gates.reduce((a, b) => a + b, 0) / 1000)).toBeCloseTo(0.85, 1);
    expect(new FastGenerator(1).normal()).toBe(new FastGenerator(1).normal());
  });

  it("counts operations of the quadratic form as a loop over pairs does", () => {
    const [T, d, e] = [7, 3, 5];
    const shape = { batch: 2, tokens: T, queryHeads: 4, heads: 2, headDim: d, valueDim: e, degree: 2 };
    let forward = 0;
    let backward = 0;
    for (let t = 0; t < T; t++) {
      for (let j = 0; j <= t; j++) {
        forward += 2 * 4 * (d + e);
        backward += 2 * 4 * (3 * d + 2 * e);
      }
    }
    expect(quadraticOperations(shape, false)).toBe(2 * forward);
    expect(quadraticOperations(shape, true)).toBe(2 * (forward + backward));
  });

  it("counts the bytes of inputs, outputs, gradients and states", () => {
    const [B, T, Hq, H, d, e] = [2, 10, 4, 2, 3, 5];
    const shape = { batch: B, tokens: T, queryHeads: Hq, heads: H, headDim: d, valueDim: e, degree: 2 };
    const inputs = 2 * B * T * (Hq * d + H * d + H * e) + 4 * B * T * H;
    const output = 2 * B * T * Hq * e;
    expect(powerBytes({ ...shape, chunkSize: null }, 2, false)).toBe(inputs + output);
    expect(powerBytes({ ...shape, chunkSize: null }, 2, true)).toBe(3 * inputs + 3 * output);
    const states = 4 * B * 3 * H * expandedDim(d, 2) * (e + 1); // chunks of 4, 4 and 2
    expect(powerBytes({ ...shape, chunkSize: 4 }, 2, false)).toBe(inputs + output + 2 * states);
    expect(powerBytes({ ...shape, chunkSize: 4 }, 2, true)).toBe(3 * (inputs + output) + 5 * states);
  });

  it("knows the floor of work on known adapters, and of no other", () => {
    const rates = ratesOf(gpu)!;
    expect(floorOf({ operations: 787e9, bytes: 0 }, rates)).toBeCloseTo(1);
    expect(floorOf({ operations: 67e9, bytes: 0 }, rates, "vector")).toBeCloseTo(1);
    expect(floorOf({ operations: 1, bytes: 8.4e9 }, rates)).toBeCloseTo(2);
    expect(floorOf({ operations: 1, bytes: 1 }, ratesOf({ ...gpu, adapter: "llvmpipe" }))).toBeUndefined();
  });

  it("counts a training step with the form that the library takes at that length", () => {
    const config = gptConfig("124M", { vocabSize: 50257 });
    const softmax = { ...config, attention: "softmax" as const };
    const tokens = 1024;
    // 124 million parameters, each three times a multiply-add; attention comes on top.
    const weights = 6 * tokens * (12 * (4 * 768 ** 2 + 8 * 768 ** 2) + 50257 * 768);
    const counted = trainingOperations(softmax, 1, tokens);
    expect(counted / weights).toBeGreaterThan(1);
    expect(counted / weights).toBeLessThan(1.1);
    expect(trainingOperations(softmax, 1, 65536)).toBeGreaterThan(1.5 * trainingOperations(config, 1, 65536));
    const chunked = { ...config, chunkSize: 128 };
    expect(trainingOperations(chunked, 1, 512)).toBe(stepOperations({ ...chunked, contextLength: 512 }, 1));
  });

  it("measures relative error by norms", () => {
    expect(normError([3, 4.5], [3, 4])).toBeCloseTo(0.1);
    expect(normError([1], [1, 2])).toBe(Number.POSITIVE_INFINITY);
    expect(normError([Number.NaN, 1], [1, 1])).toBeNaN();
  });

  it("notes a case that fails and goes on", async () => {
    const failures: string[] = [];
    expect(await attempt(failures, "a", async () => 1)).toBe(1);
    expect(await attempt(failures, "b", async () => Promise.reject(new Error("too large")))).toBeUndefined();
    expect(failures).toEqual(["b: too large"]);
  });

  it("shows aim, floor, adapter, driver and versions", () => {
    const text = toText(report(1.5));
    expect(text).toMatch(
      /NVIDIA H200, driver 570\.1; matrix units 16×16×16; bounds checks on; a CPU; Node 24\.1\.0, webgpu 0\.6\.2/,
    );
    expect(text).toMatch(/figure +value +spread +target +aim +floor +outcome/);
    expect(text).toMatch(/1\.50 ms +≤ 2\.90 ms +1\.60 ms +0\.44 ms +met, and the aim/);
    expect(toText(report(2))).toMatch(/met$/m);
    expect(toText(report(3))).toMatch(/missed$/m);
    const kernels = [{ name: "state-scan", count: 2, ms: 0.3 }];
    const profiled = report(2);
    profiled.results[0].profiles = [{ name: "T=65,536", kernels }];
    expect(toText(profiled)).not.toContain("state-scan");
    expect(toText(profiled, { profile: true })).toMatch(/state-scan +2 +0\.300 +100 %/);
    expect(toMarkdown(report(2))).toContain(
      "| T=65,536, GPU time | 2.00 ms |  | ≤ 2.90 ms | 1.60 ms | 0.44 ms | met |",
    );
  });

  it("compares rows of GPUs, with those that came and went", () => {
    const after = report(1.5);
    const old = { name: "T=16,384, GPU time", value: 3, unit: "ms" };
    const before = report(3);
    before.results[0].figures.push(old);
    after.results[0].figures.push({ ...old, name: "T=4,096, GPU time" });
    const text = compare(before, after);
    expect(text).toMatch(/T=65,536, GPU time +3\.00 ms +1\.50 ms +-50\.0 % +missed +met/);
    expect(text).toMatch(/T=4,096, GPU time +3\.00 ms +new/);
    expect(text).toMatch(/T=16,384, GPU time +3\.00 ms +gone/);
    expect(text).not.toContain("machines differ");
    const other = { ...before, gpu: { ...gpu, driver: "999" } };
    expect(compare(other, after)).toContain("machines differ");
  });

  it("joins runs of one machine, the later in place of the earlier", () => {
    const second = report(2, { commit: "def" });
    const third = report(7, { results: [{ ...report(7).results[0], name: "gpu-matmul" }] });
    const joined = merge([report(1), second, third]);
    expect(joined.results.map(({ name, figures }) => [name, figures[0].value])).toEqual([
      ["gpu-forward", 2],
      ["gpu-matmul", 7],
    ]);
    expect(joined.commit).toBe("abc, def");
    expect(toMarkdown(joined)).toMatch(/Several runs.*## gpu-forward\n\nNVIDIA H200.*commit def; today\n\nHow long\?/s);
    expect(merge([second])).toBe(second);
    expect(() => merge([report(1), report(1, { device: "wasm" })])).toThrow(/reports of one machine are needed/);
    expect(() => merge([report(1), report(1, { quick: true })])).toThrow(/one machine/);
  });

  it("draws bars, and says under a plot what was measured on what", () => {
    const bars = barPlot({ title: "t", y: "ms", groups: ["f"], series: { ours: [21], "jax-js": [null] }, logY: true });
    expect(bars).toContain(">21<");
    const svg = draw({ kind: "lines", title: "t", x: "T", y: "tokens/s", series: { p: [[1, 2]] } }, report(2));
    expect(svg).toContain(`<desc>${heading(report(2))}</desc>`);
    expect(svg).toMatch(/<tspan x="12" y="\d+">NVIDIA H200, driver/);
    const small = captioned('<svg width="100" height="50" viewBox="0 0 100 50"></svg>', "a < b");
    expect(small).toMatch(/^<svg width="100" height="78" viewBox="0 0 100 78">/);
    expect(small).toContain("a &lt; b");
    expect(() => barPlot({ title: "t", y: "ms", groups: ["f"], series: { a: [0] }, logY: true })).toThrow(/no values/);
  });

  it("finds throughput by context on the CPU, and each curve has its points", async () => {
    const context = new Context({ quick: true, threads: 1, kind: "wasm", progress: () => {} });
    const { figures, plot, failures, table } = await throughputByContext.run(context);
    await context.dispose();
    expect(failures).toEqual([]);
    expect(plot?.kind).toBe("lines");
    const series = plot!.series as Record<string, [number, number][]>;
    expect(Object.keys(series)).toHaveLength(4);
    for (const points of Object.values(series)) {
      expect(points.length).toBeGreaterThan(0);
      for (const [, rate] of points) expect(rate).toBeGreaterThan(0);
    }
    expect(figures.length).toBe(Object.values(series).flat().length);
    expect(table!.rows).toHaveLength(3);
  });

  it("refuses a question that the device can't be asked", () => {
    expect(() => bench("--only", "gpu-forward")).toThrow(/gpu-forward can't be asked on wasm; pass --device webgpu/);
    expect(bench("--help")).toMatch(/on webgpu: gpu-accuracy, gpu-forward/);
  });
});

describeOnGpu("bench on webgpu", () => {
  const contextOf = () => new Context({ quick: true, threads: 1, kind: "webgpu", progress: () => {} });

  it("makes the inputs that other devices get", async () => {
    const device = await getDevice("webgpu");
    const oracle = await getDevice("oracle");
    const shape = { batch: 1, tokens: 6, queryHeads: 2, heads: 1, headDim: 4, valueDim: 4 };
    const there = fastInputs(device, shape, { dtype: "bf16", requiresGrad: true });
    const here = fastInputs(oracle, shape, { dtype: "f32", rounded: true, requiresGrad: true });
    for (const name of ["q", "k", "v", "upstream"] as const) {
      expect([...(await there[name].data())]).toEqual([...(await here[name].data())]);
    }
    expect([there.q.requiresGrad, there.logG.requiresGrad, there.upstream.requiresGrad]).toEqual([true, true, false]);
    there.dispose();
    here.dispose();
  });

  it("times a forward pass by two clocks, kernel by kernel", async () => {
    const context = contextOf();
    const { figures, table, failures, profiles } = await gpuForward.run(context);
    const { features } = (await context.gpu()).gpu;
    await context.dispose();
    expect(failures).toEqual([]);
    expect(table!.rows).toHaveLength(3);
    for (const { value, unit } of figures) if (unit === "ms") expect(value).toBeGreaterThan(0);
    if (!features.has("timestamp-query")) return;
    expect(figures.map(({ name }) => name)).toContain("T=256, GPU time");
    expect(profiles![0].kernels.some(({ name }) => name.includes("state-scan"))).toBe(true);
  });

  it("starts a fresh process for the first result", () => {
    const printed = bench("--device", "webgpu", "--quick", "--only", "gpu-first-result");
    const { results, gpu } = JSON.parse(printed.slice(0, printed.lastIndexOf("\n}\n") + 2)) as Report;
    expect(gpu!.adapter).not.toBe("");
    expect(results[0].failures).toEqual([]);
    expect(results[0].figures.map(({ name }) => name)).toEqual(["forward", "forward-backward"]);
    expect(results[0].table!.rows).toHaveLength(12);
  }, 240_000);
});
