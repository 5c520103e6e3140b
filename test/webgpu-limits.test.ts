import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { expect, test } from "vitest";
import { getDevice } from "../src/devices/get-device.js";
import { findAdapter, requestDevice } from "../src/devices/webgpu/adapter.js";
import type { WebGpuDevice } from "../src/devices/webgpu/device.js";
import { powerFull } from "../src/power-attention.js";
import { randn, zeros } from "../src/tensor/create.js";
import { expectClose, expectSame, type Problem, randomInputs, solve } from "./attention.js";
import { describeOnGpu } from "./devices.js";
import { limitedGpu } from "./limited-gpu.js";
import { draw, operations, solveOn } from "./low-level.js";
import { attentionTolerance, IN_F16 } from "./tolerances.js";

const tolerance = (name: string) => attentionTolerance("webgpu", "f32", name.startsWith("d") ? "gradient" : "output");

describeOnGpu("webgpu within the limits of small GPUs", () => {
  test("16 KiB of workgroup memory, 8 bindings and no features suffice", async () => {
    // What every adapter grants: no limit and no feature is asked for.
    const gpu = await (await findAdapter())!.requestDevice();
    expect(gpu.limits.maxComputeWorkgroupStorageSize).toBe(16384);
    expect(gpu.limits.maxStorageBuffersPerShaderStage).toBe(8);
    const device = await getDevice("webgpu", { device: gpu });
    const oracle = await getDevice("oracle");
    for (const headDim of [8, 40]) {
      const problem: Problem = {
        batch: 1,
        time: 70,
        queryHeads: 2,
        heads: 1,
        headDim,
        valueDim: 12,
        degree: 2,
        gated: true,
        initial: true,
        final: true,
        options: { chunkSize: 66 },
      };
      const arrays = randomInputs(problem);
      expectSame(await solve(device, problem, arrays), await solve(oracle, problem, arrays), tolerance);
    }
    device.dispose();
    gpu.destroy();
  });

  test("running out of memory names what was needed and what helps, and the device goes on", async () => {
    const gpu = limitedGpu(await requestDevice((await findAdapter())!), { memory: 16 * 2 ** 20 });
    const device = await getDevice("webgpu", { device: gpu });
    const q = randn([1, 256, 4, 16], { device, seed: 1 });
    const run = async (chunkSize: number) => {
      const output = powerFull(q, q, q, { chunkSize });
      try {
        return await output.data();
      } finally {
        output.dispose();
      }
    };
    const expected = await run(128);
    const kept = zeros([2 ** 20], { device });
    const free = zeros([2 ** 20], { device });
    free.dispose();
    await device.sync();
    const { used, reserved } = device.memory();
    // 256 chunks of 4 states of 136 × 16 numbers, 9 MiB, where 16 − 8 − a little are left.
    await expect(run(1)).rejects.toThrow(
      /webgpu: out of memory: 10\.0 MiB more were needed beside [4-6]\.\d MiB in use and [4-5]\.\d MiB kept for reuse, which are free now. Free tensors.*chunkSize/,
    );
    expect(device.memory().used).toBe(used);
    expect(device.memory().reserved).toBeLessThan(reserved - 4 * 2 ** 20);
    kept.dispose();
    expectClose(await run(1), expected, 1e-5, "output after running out of memory");
    device.dispose();
    gpu.destroy();
  });

  const small: Problem = {
    batch: 2,
    time: 9,
    queryHeads: 6,
    heads: 3,
    headDim: 16,
    valueDim: 16,
    degree: 2,
    gated: true,
    initial: true,
    final: true,
    options: { chunkSize: 2 },
  };
  const headBytes = 4 * 136 * 16;

  // Two of five sequences at a time; 5 chunks of 3 heads, of a sequence at a time; then two heads at a time, and the third;
  // then each head on its own.
  test.each([
    [30, 5],
    [7, 2],
    [2, 2],
    [1, 2],
  ])("states beyond one binding are taken in parts: %i heads' states fit, %i sequences", async (fit, batch) => {
    const gpu = await requestDevice((await findAdapter())!);
    const limits = { maxStorageBufferBindingSize: fit * headBytes };
    const device = await getDevice("webgpu", { device: limitedGpu(gpu, { limits }) });
    const oracle = await getDevice("oracle");
    for (const change of [{}, { initial: false, gated: false }, { final: false, degree: 1 }]) {
      const problem = { ...small, batch, ...change };
      const arrays = randomInputs(problem);
      expectSame(await solve(device, problem, arrays), await solve(oracle, problem, arrays), tolerance);
    }
    device.dispose();
    gpu.destroy();
  });

  // Padded and with sums, states of a chunk take ten times as much there.
  test.each([
    [100, 5],
    [8, 2],
  ])("the same with half inputs on matrix units: %i, %i", async (fit, batch) => {
    const gpu = await requestDevice((await findAdapter())!);
    const limits = { maxStorageBufferBindingSize: fit * headBytes };
    const device = await getDevice("webgpu", { device: limitedGpu(gpu, { limits }) });
    const oracle = await getDevice("oracle");
    expect((device as WebGpuDevice).matrixUnits).toEqual(((await getDevice("webgpu")) as WebGpuDevice).matrixUnits);
    const problem = { ...small, batch, dtype: "bf16" } as const;
    const arrays = randomInputs(problem);
    expectSame(await solve(device, problem, arrays), await solve(oracle, problem, arrays), (name) =>
      name.startsWith("d") ? IN_F16.gradient : IN_F16.output,
    );
    device.dispose();
    gpu.destroy();
  });

  // A chunk's states of three heads take 26 KB, on matrix units with sums 83 KB.
  test.each([
    ["f32, runs of two chunks", 60_000, "f32"],
    ["bf16, runs of two chunks", 170_000, "bf16"],
    ["bf16, no room for one on matrix units", 60_000, "bf16"],
  ] as const)("chunk states beyond one binding: %s", async (_, maxStorageBufferBindingSize, dtype) => {
    const gpu = await requestDevice((await findAdapter())!);
    const device = await getDevice("webgpu", { device: limitedGpu(gpu, { limits: { maxStorageBufferBindingSize } }) });
    const oracle = await getDevice("oracle");
    const dims = { batch: 2, time: 9, queryHeads: 6, heads: 3, headDim: 16, valueDim: 16, chunkSize: 2 };
    for (const [name, ins, outs, run] of operations(2, true, dims).filter(([name]) => /chunkState|query/.test(name))) {
      const [inputs, upstream] = [draw(ins, 1, dtype), draw(outs, 2)];
      const found = await solveOn(device, inputs, upstream, run);
      const truth = await solveOn(oracle, inputs, upstream, run);
      for (const part of Object.keys(truth)) {
        const allowed = dtype === "f32" ? tolerance(part) : part.startsWith("d") ? IN_F16.gradient : IN_F16.output;
        expectClose(found[part], truth[part], allowed, `${name} ${part}`);
      }
    }
    device.dispose();
    gpu.destroy();
  });

  test("a head's state beyond one binding is refused, with its size", async () => {
    const gpu = await requestDevice((await findAdapter())!);
    const limits = { maxStorageBufferBindingSize: headBytes - 4 };
    const device = await getDevice("webgpu", { device: limitedGpu(gpu, { limits }) });
    const q = randn([1, 4, 1, 16], { device, seed: 1 });
    expect(() => powerFull(q, q, q, { chunkSize: 2 })).toThrow(
      /powerFull: a head's state must fit the 0\.0 MiB .* got 0\.0 MiB \(expandedDim 136 × valueDim 16, for degree 2, headDim 16\); use a lower degree/,
    );
    expect(powerFull(q, q, q, { chunkSize: null }).shape).toEqual([1, 4, 1, 16]);
    device.dispose();
    gpu.destroy();
  });

  test("a process that used the GPU exits by itself", () => {
    const entry = new URL("../dist/src/index.js", import.meta.url);
    if (!existsSync(entry)) return expect(existsSync(entry), "npm run build comes before the tests").toBe(true);
    // Nothing is disposed, work is pending, and one device is of an instance of its own.
    const script = `
      const { getDevice, powerFull, randn } = await import(${JSON.stringify(entry.href)});
      for (const options of [undefined, { boundsChecks: false }]) {
        const device = await getDevice("webgpu", options);
        const q = randn([1, 6, 1, 4], { device, seed: 1, requiresGrad: true });
        powerFull(q, q, q).sum().backward();
        console.log((await q.grad.data()).length);
        powerFull(q, q, q);
      }`;
    for (let n = 0; n < 5; n++) {
      // Throws where the exit code is not 0.
      const output = execFileSync(process.execPath, ["--input-type=module", "-e", script], { timeout: 30_000 });
      expect(String(output).trim().split("\n")).toEqual(["24", "24"]);
    }
  });
});
