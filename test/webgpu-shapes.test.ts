import { expect, test } from "vitest";
import { getDevice } from "../src/devices/get-device.js";
import { requestDevice } from "../src/devices/webgpu/adapter.js";
import type { WebGpuDevice } from "../src/devices/webgpu/device.js";
import { softmaxAttention } from "../src/ops/softmax-attention/index.js";
import { powerFull } from "../src/power-attention.js";
import { randn } from "../src/tensor/create.js";
import { scope } from "../src/tensor/tensor.js";
import { limitedGpu } from "./limited-gpu.js";

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
  const limits = { maxComputeWorkgroupStorageSize: memory, maxStorageBuffersPerShaderStage: 12 };
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
