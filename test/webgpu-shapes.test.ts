import { expect, test } from "vitest";
import type { Device } from "../src/devices/device.js";
import { getDevice } from "../src/devices/get-device.js";
import { findAdapter, requestDevice } from "../src/devices/webgpu/adapter.js";
import type { WebGpuDevice } from "../src/devices/webgpu/device.js";
import { explainCompilation } from "../src/devices/webgpu/kernel.js";
import { type TunedTiles, tileProblem } from "../src/devices/webgpu/legal-tiles.js";
import { matricesOf } from "../src/devices/webgpu/matrix-text.js";
import type { MatrixUnits } from "../src/devices/webgpu/matrix-units.js";
import { powerTiles } from "../src/ops/power-attention/matrix-units/tiles.js";
import { softmaxAttention } from "../src/ops/softmax-attention/index.js";
import { powerFull } from "../src/power-attention.js";
import { scope } from "../src/tensor/tensor.js";
import { expectClose, place, randomInputs } from "./attention.js";
import { describeOnGpu } from "./devices.js";
import { LARGER, withSmallMatrices } from "./larger-matrices.js";
import { limitedGpu } from "./limited-gpu.js";
import { TOLERANCE } from "./tolerances.js";
import { workgroupBytes } from "./workgroup-bytes.js";

/** Dawn without a driver: it checks everything and runs nothing. Held, as its instance must not be collected. */
const dawn = await import("webgpu").then(
  ({ create, globals }) => {
    for (const [name, value] of Object.entries(globals)) Object.assign(globalThis, { [name]: value });
    return create(["backend=null", "enable-dawn-features=allow_unsafe_apis"]);
  },
  () => undefined,
);

const shape = (M: number, N: number, K: number) => ({ M, N, K, componentType: "f16", resultComponentType: "f32" });

/** What adapters tell of their matrix units; see docs/architecture.md. */
const ADAPTERS = {
  NVIDIA: { subgroup: 32, memory: 48 * 1024, shapes: [shape(16, 16, 16), shape(16, 8, 16), shape(16, 8, 8)] },
  Apple: { subgroup: 32, memory: 32 * 1024, shapes: [shape(8, 8, 8)] },
};

test.each([1, 2, 3, 4])("NVIDIA: heads of up to 128 elements have tiles at degree %i", (degree) => {
  const units: MatrixUnits = { M: 16, N: 16, K: 16, subgroupSize: 32, narrow: { M: 16, N: 8, K: 16 } };
  const limits = {
    maxComputeWorkgroupStorageSize: ADAPTERS.NVIDIA.memory,
    maxComputeInvocationsPerWorkgroup: 1024,
    maxComputeWorkgroupSizeX: 1024,
    maxStorageBuffersPerShaderStage: 16,
  } as unknown as GPUSupportedLimits;
  for (const headDim of [1, 16, 40, 64, 128]) {
    for (const valueDim of [1, 40, 64, 128]) {
      const tiles = powerTiles(units, limits, { headDim, valueDim, degree }, {});
      expect(tiles, `d=${headDim}, e=${valueDim}`).toBeDefined();
    }
  }
});

/**
 * Calls attention forward and backward on a GPU that says it has these matrix units; gives the kernels made, by name, with
 * what was wrong with their shaders. Pipelines fail: the driver that there is none of allows less memory.
 */
async function compile(adapter: keyof typeof ADAPTERS, degree: number, headDim: number, valueDim: number) {
  const { subgroup, memory, shapes } = ADAPTERS[adapter];
  const real = await requestDevice((await dawn!.requestAdapter())!);
  real.addEventListener("uncapturederror", (event) => event.preventDefault());
  const adapterInfo = { subgroupMatrixConfigs: shapes, subgroupMinSize: subgroup, subgroupMaxSize: subgroup };
  const limits = {
    maxComputeWorkgroupStorageSize: memory,
    maxComputeInvocationsPerWorkgroup: 1024,
    maxComputeWorkgroupSizeX: 1024,
    maxStorageBuffersPerShaderStage: 13,
  };
  const modules: [string, string, GPUShaderModule][] = [];
  const gpu = new Proxy(limitedGpu(real, { limits }), {
    get(target, name) {
      if (name === "adapterInfo") return adapterInfo;
      if (name !== "createShaderModule") return Reflect.get(target, name, target);
      return (descriptor: GPUShaderModuleDescriptor) => {
        const module = target.createShaderModule(descriptor);
        modules.push([descriptor.label!, descriptor.code, module]);
        return module;
      };
    },
  });
  const device = (await getDevice("webgpu", { device: gpu })) as WebGpuDevice;
  const { M, N, K } = shapes[0];
  expect(device.matrixUnits).toMatchObject({ M, N, K, subgroupSize: subgroup });
  const dims = { batch: 1, time: 70, queryHeads: 2, heads: 1, headDim, valueDim, degree };
  const { q, k, v, logG } = place(device, randomInputs({ ...dims, gated: true, dtype: "bf16" }).inputs, true);
  scope(() => {
    const { output } = powerFull(q, k, v, { degree, logG, chunkSize: 32, returnFinalState: true });
    output.backward(output.detach());
  });
  scope(() => softmaxAttention(q, k, v).sum().backward());
  const found: Record<string, string[]> = {};
  for (const [name, code, module] of modules) {
    const { messages } = await module.getCompilationInfo();
    const errors = messages.filter(({ type }) => type === "error");
    found[name] = errors.length > 0 ? [explainCompilation(name, code, errors)] : [];
    const bytes = workgroupBytes(code);
    if (bytes > memory) found[name].push(`${bytes} bytes of workgroup memory`);
  }
  real.destroy();
  return found;
}

test.skipIf(!dawn).each([
  ["NVIDIA", 1, 64, 64],
  ["NVIDIA", 2, 64, 64],
  ["NVIDIA", 2, 128, 128],
  ["NVIDIA", 2, 20, 70],
  ["NVIDIA", 3, 32, 32],
  ["NVIDIA", 3, 64, 64],
  ["NVIDIA", 3, 96, 32],
  ["NVIDIA", 4, 32, 32],
  ["NVIDIA", 4, 16, 16],
  ["NVIDIA", 4, 24, 40],
  ["Apple", 2, 64, 64],
] as const)(
  "shaders for the matrix units of %s compile, p=%i, d=%i, e=%i",
  async (adapter, degree, headDim, valueDim) => {
    const found = await compile(adapter, degree, headDim, valueDim);
    for (const [name, problems] of Object.entries(found)) expect(problems.join("\n"), name).toBe("");
    const kernels = ["softmax-on-matrix-units", "softmax-gradient-queries", "softmax-gradient-keys"];
    for (const name of [...kernels, "read-on-matrix-units"]) expect(Object.keys(found)).toContain(name);
  },
);

const adapter = await findAdapter();
const small = (adapter?.info as { subgroupMaxSize?: number } | undefined)?.subgroupMaxSize === 8;

describeOnGpu("matrix units of 16×16×16 and subgroups of 32, played by smaller ones", () => {
  test.runIf(small)("softmax attention is the oracle's, with the tiles of a large GPU", async () => {
    const names: string[] = [];
    const gpu = new Proxy(limitedGpu(await requestDevice((await findAdapter())!), {}), {
      get(target, name) {
        if (name === "adapterInfo") return LARGER;
        if (name !== "createShaderModule") return Reflect.get(target, name, target);
        return (descriptor: GPUShaderModuleDescriptor) => {
          names.push(descriptor.label!);
          return target.createShaderModule({ ...descriptor, code: withSmallMatrices(descriptor.code) });
        };
      },
    });
    const device = (await getDevice("webgpu", { device: gpu })) as WebGpuDevice;
    // The table's, where a workgroup has 48 KiB.
    const tiles: TunedTiles = {
      softmax: { rows: 128, keys: 16, down: 4, across: 1 },
      softmaxQueries: { rows: 64, keys: 16, down: 2, across: 2 },
      softmaxKeys: { rows: 64, queries: 16, down: 2, across: 2 },
    };
    Object.assign(device.tuned, tiles);
    for (const [kernel, tile] of Object.entries(tiles)) {
      const units = matricesOf(device.matrixUnits!);
      expect(tileProblem(kernel, tile, units, gpu.limits, { x: 2, y: 2, sumAt: 2 }), kernel).toBeUndefined();
    }
    const shape = { batch: 1, time: 300, queryHeads: 2, heads: 1, headDim: 16, valueDim: 12, degree: 1 };
    const { inputs, upstream } = randomInputs({ ...shape, dtype: "bf16" });
    const solve = async (on: Device) => {
      const { q, k, v } = place(on, inputs, true);
      const output = softmaxAttention(q, k, v, { scale: 1 });
      output.backward(place(on, upstream).output);
      const found: Record<string, ArrayLike<number>> = { output: await output.data() };
      for (const [name, x] of Object.entries({ q, k, v })) found[`d${name}`] = await x.grad!.data();
      return found;
    };
    const [got, want] = [await solve(device), await solve(await getDevice("oracle"))];
    for (const name of Object.keys(want)) {
      expectClose(got[name], want[name], TOLERANCE[name === "output" ? "output" : "gradient"].bf16, name);
    }
    for (const name of ["softmax-on-matrix-units", "softmax-gradient-queries", "softmax-gradient-keys"]) {
      expect(names).toContain(name);
    }
    device.dispose();
  });
});
