import { expect, test } from "vitest";
import type { Device } from "../src/devices/device.js";
import { getDevice } from "../src/devices/get-device.js";
import { findAdapter, requestDevice } from "../src/devices/webgpu/adapter.js";
import type { WebGpuDevice } from "../src/devices/webgpu/device.js";
import { type TunedTiles, tileProblem } from "../src/devices/webgpu/legal-tiles.js";
import { matricesOf } from "../src/devices/webgpu/matrix-text.js";
import { softmaxAttention } from "../src/ops/softmax-attention/index.js";
import { powerFull } from "../src/power-attention.js";
import { randn } from "../src/tensor/create.js";
import { scope } from "../src/tensor/tensor.js";
import { expectClose, place, randomInputs } from "./attention.js";
import { describeOnGpu } from "./devices.js";
import { LARGER, withSmallMatrices } from "./larger-matrices.js";
import { limitedGpu } from "./limited-gpu.js";
import { TOLERANCE } from "./tolerances.js";

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

/**
 * Calls attention forward and backward on a GPU that says it has these matrix units; gives the kernels made, by name, and what
 * was wrong with their shaders. Pipelines fail: the driver that there is none of allows less memory.
 */
async function compile(adapter: keyof typeof ADAPTERS, headDim: number, valueDim: number) {
  const { subgroup, memory, shapes } = ADAPTERS[adapter];
  const real = await requestDevice((await dawn!.requestAdapter())!);
  real.addEventListener("uncapturederror", (event) => event.preventDefault());
  const adapterInfo = { subgroupMatrixConfigs: shapes, subgroupMinSize: subgroup, subgroupMaxSize: subgroup };
  const limits = { maxComputeWorkgroupStorageSize: memory, maxStorageBuffersPerShaderStage: 13 };
  const modules: [string, GPUShaderModule][] = [];
  const gpu = new Proxy(limitedGpu(real, { limits }), {
    get(target, name) {
      if (name === "adapterInfo") return adapterInfo;
      if (name !== "createShaderModule") return Reflect.get(target, name, target);
      return (descriptor: GPUShaderModuleDescriptor) => {
        const module = target.createShaderModule(descriptor);
        modules.push([descriptor.label!, module]);
        return module;
      };
    },
  });
  const device = (await getDevice("webgpu", { device: gpu })) as WebGpuDevice;
  const { M, N, K } = shapes[0];
  expect(device.matrixUnits).toMatchObject({ M, N, K, subgroupSize: subgroup });
  const [q, k, v] = [headDim, headDim, valueDim].map((width) =>
    randn([1, 70, 2, width], { device, dtype: "bf16", requiresGrad: true }),
  );
  scope(() => softmaxAttention(q, k, v).sum().backward());
  scope(() => powerFull(q, k, v, { chunkSize: 32 }).sum().backward());
  const found: Record<string, string[]> = {};
  for (const [name, module] of modules) {
    const { messages } = await module.getCompilationInfo();
    found[name] = messages.filter(({ type }) => type === "error").map(({ message }) => message);
  }
  real.destroy();
  return found;
}

test.skipIf(!dawn).each([
  ["NVIDIA", 64, 64],
  ["NVIDIA", 128, 128],
  ["NVIDIA", 20, 70],
  ["Apple", 64, 64],
] as const)("shaders for the matrix units of %s compile, heads of %i and %i", async (adapter, headDim, valueDim) => {
  const found = await compile(adapter, headDim, valueDim);
  for (const [name, errors] of Object.entries(found)) expect(errors, name).toEqual([]);
  const kernels = ["softmax-on-matrix-units", "softmax-gradient-queries", "softmax-gradient-keys"];
  for (const name of kernels) expect(Object.keys(found)).toContain(name);
});

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
