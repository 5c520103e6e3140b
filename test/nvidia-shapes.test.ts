import { afterAll, beforeAll, expect, test } from "vitest";
import { findAdapter } from "../src/devices/webgpu/adapter.js";
import { type Dispatch, WebGpuDevice } from "../src/devices/webgpu/device.js";
import { explainCompilation, type KernelSource, kernelKey, shaderOf } from "../src/devices/webgpu/kernel.js";
import type { MatrixUnits } from "../src/devices/webgpu/matrix-units.js";
import { powerTiles } from "../src/ops/power-attention/matrix-units/tiles.js";
import { powerFull } from "../src/power-attention.js";
import { type Problem, place, randomInputs } from "./attention.js";
import { describeOnGpu } from "./devices.js";
import { limitedGpu } from "./limited-gpu.js";
import { workgroupBytes } from "./workgroup-bytes.js";

/** What an NVIDIA H200 reports. */
const UNITS: MatrixUnits = { M: 16, N: 16, K: 16, subgroupSize: 32, narrow: { M: 16, N: 8, K: 16 } };
const LIMITS = {
  maxComputeWorkgroupStorageSize: 48 * 1024,
  maxComputeInvocationsPerWorkgroup: 1024,
  maxComputeWorkgroupSizeX: 1024,
  maxStorageBuffersPerShaderStage: 16,
};

let gpu: GPUDevice;

test.each([1, 2, 3, 4])("heads of up to 128 elements have tiles at degree %i", (degree) => {
  for (const headDim of [1, 16, 40, 64, 128]) {
    for (const valueDim of [1, 40, 64, 128]) {
      const tiles = powerTiles(UNITS, LIMITS as unknown as GPUSupportedLimits, { headDim, valueDim, degree }, {});
      expect(tiles, `d=${headDim}, e=${valueDim}`).toBeDefined();
    }
  }
});

describeOnGpu("kernels of power attention for an NVIDIA GPU's matrix units", () => {
  beforeAll(async () => {
    const adapter = (await findAdapter())!;
    gpu = await adapter.requestDevice({ requiredFeatures: [...adapter.features] as GPUFeatureName[] });
  });
  afterAll(() => gpu?.destroy());

  test.each([
    [1, 64, 64],
    [2, 64, 64],
    [2, 128, 128],
    [3, 32, 32],
    [3, 64, 64],
    [4, 32, 32],
    [4, 16, 16],
    [4, 24, 40],
    [3, 96, 32],
  ])("p=%i, d=%i, e=%i: every kernel of forward and backward compiles", async (degree, headDim, valueDim) => {
    if (!gpu.features.has("chromium-experimental-subgroup-matrix" as GPUFeatureName)) return;
    const device = await WebGpuDevice.create({ device: limitedGpu(gpu, { limits: LIMITS }), tiles: false });
    const sources = new Map<string, KernelSource>();
    // Nothing runs: this GPU has other matrix units.
    const record = (source: KernelSource, _: Dispatch) => void sources.set(kernelKey(source), source);
    Object.defineProperties(device, { matrixUnits: { value: UNITS }, dispatch: { value: record } });
    const shape = { batch: 1, time: 70, queryHeads: 2, heads: 1, headDim, valueDim, degree };
    const problem: Problem = { ...shape, gated: true, dtype: "bf16" };
    const { q, k, v, logG } = place(device, randomInputs(problem).inputs, true);
    const { output } = powerFull(q, k, v, { degree, logG, chunkSize: 32, returnFinalState: true });
    output.backward(output.detach());
    expect([...sources.values()].map(({ name }) => name)).toContain("read-on-matrix-units");
    for (const source of sources.values()) {
      const code = shaderOf(source, true);
      expect(workgroupBytes(code), source.name).toBeLessThanOrEqual(LIMITS.maxComputeWorkgroupStorageSize);
      gpu.pushErrorScope("validation");
      const { messages } = await gpu.createShaderModule({ code }).getCompilationInfo();
      await gpu.popErrorScope();
      const errors = messages.filter(({ type }) => type === "error");
      expect(errors.length, errors.length ? explainCompilation(source.name, code, errors) : source.name).toBe(0);
    }
    device.dispose();
  });
});
