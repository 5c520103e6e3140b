import { expect, test } from "vitest";
import { describeOnGpu, hasAdapter } from "../../../test/devices.js";
import { tensor } from "../../tensor/create.js";
import type { DType } from "../../tensor/dtype.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { getDevice } from "../get-device.js";
import { findAdapter, requestDevice } from "./adapter.js";
import type { WebGpuDevice } from "./device.js";
import { fromGPUBuffer, gpuBuffer } from "./interop.js";
import type { KernelSource } from "./kernel.js";

/** y = factor · x, one element or a pair of neighbours for each invocation. */
const scaled = (dtype: DType, pairs: boolean, body = ""): KernelSource => ({
  name: "scaled",
  constants: { PAIRS: pairs },
  tensors: { x: { dtype, access: "read" }, y: { dtype, access: "write" } },
  parameters: { count: "u32", factor: "f32" },
  body: () => `
${body}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let i = select(id.x, 2u * id.x, PAIRS);
  if (i >= P.count) { return; }
  if (PAIRS && i + 1u < P.count) { store2_y(i, P.factor * load_x(i), P.factor * load_x(i + 1u)); }
  else { store_y(i, P.factor * load_x(i)); }
}`,
});

function scale(x: Tensor, factor: number, pairs = false): Tensor {
  const y = empty(x.shape, x.device, x.dtype);
  (x.device as WebGpuDevice).dispatch(scaled(x.dtype, pairs), {
    tensors: { x, y },
    parameters: { count: x.size, factor },
    workgroups: [Math.ceil(x.size / 64)],
  });
  return y;
}

const device = (hasAdapter ? await getDevice("webgpu") : undefined) as WebGpuDevice;

describeOnGpu("the webgpu device", () => {
  test("names its adapter", () => {
    expect(device.description).toMatch(/^webgpu \(.+\)$/);
  });

  test.each(["f32", "f16", "bf16"] as const)(
    "moves %s values in and out, odd counts and offsets too",
    async (dtype) => {
      const values = Array.from({ length: 37 }, (_, k) => k - 5);
      const x = tensor(values, [37], { device, dtype });
      expect([...(await x.data())]).toEqual(values);
      for (const pairs of [false, true]) {
        expect([...(await scale(x, 0.5, pairs).data())]).toEqual(values.map((v) => v / 2));
      }
      expect([...(await device.read(x.storage, 3, 5))]).toEqual(values.slice(3, 8));
      const view = x.slice(0, 3, 36);
      expect([...(await scale(view, 2).data())]).toEqual(values.slice(3, 36).map((v) => 2 * v));
    },
  );

  test("rounds to f16 as the host does, ties, subnormals and infinities included", async () => {
    const values = [1 + 2 ** -11, 1 + 3 * 2 ** -11, 65519, 65520, 2 ** -24, 2 ** -25, 3 * 2 ** -25, 1e-10, -0.1, 6e-5];
    const x = tensor(values, [values.length], { device });
    const y = empty([values.length], device, "f16");
    const kernel = { ...scaled("f16", false), name: "rounded" };
    kernel.tensors = { x: { dtype: "f32", access: "read" }, y: { dtype: "f16", access: "write" } };
    device.dispatch(kernel, { tensors: { x, y }, parameters: { count: values.length, factor: 1 }, workgroups: [1] });
    expect([...(await y.data())]).toEqual([...(await tensor(values, undefined, { device, dtype: "f16" }).data())]);
  });

  test("keeps the order of writes and work, also in reused buffers", async () => {
    const results: Tensor[] = [];
    for (let k = 0; k < 300; k++) {
      const x = tensor(new Float32Array(1000).fill(k), undefined, { device });
      const y = scale(x, 2);
      x.dispose();
      results.push(scale(y, 3));
      y.dispose();
    }
    for (const [k, result] of results.entries()) expect((await result.data())[999]).toBe(6 * k);
    for (const result of results) result.dispose();
  });

  test("holds its memory flat", async () => {
    const step = () => {
      const x = tensor(new Float32Array(5000), undefined, { device });
      const y = scale(x, 2);
      x.dispose();
      y.dispose();
    };
    step();
    await device.sync();
    const { used, reserved } = device.memory();
    for (let k = 0; k < 10_000; k++) step();
    await device.sync();
    // Tensors of earlier tests may be collected meanwhile.
    expect(device.memory().used).toBeLessThanOrEqual(used);
    expect(device.memory().reserved).toBe(reserved);
  });

  test("tells the GPU time of kernels by name", async () => {
    const x = tensor(new Float32Array(100_000), undefined, { device });
    const { gpuMs, kernels } = await device.profile(() => {
      for (let k = 0; k < 3; k++) scale(x, 2);
    });
    expect(kernels.map(({ name, count }) => [name, count])).toEqual([["scaled", 3]]);
    expect(kernels[0].ms).toBeGreaterThan(0);
    expect(gpuMs).toBeGreaterThanOrEqual(kernels[0].ms);
    expect((await device.profile(() => {})).kernels).toEqual([]);
  });

  test("shows the lines of a shader that does not compile, at the next read, and works on", async () => {
    const x = tensor([1], [1], { device });
    const broken = { ...scaled("f32", false, "fn f() -> f32 { return 1u; }"), name: "broken" };
    device.dispatch(broken, { tensors: { x, y: x.alias() }, parameters: { count: 1, factor: 1 }, workgroups: [1] });
    await expect(x.data()).rejects.toThrow(/the shader of broken does not compile[\s\S]*\d+ \| .*return 1u;/);
    expect([...(await x.data())]).toEqual([1]);
  });

  test("refuses what no buffer can hold, with the size", () => {
    expect(() => device.allocate("f32", 2 ** 34)).toThrow(/one buffer holds at most .* MiB .* 65536\.0 MiB are needed/);
  });

  test("keeps within maxMemory", async () => {
    const small = await getDevice("webgpu", { maxMemory: 2 ** 20 });
    const x = empty([2 ** 17], small, "f32");
    expect(() => empty([2 ** 18], small, "f32")).toThrow(/0\.5 MiB of at most 1\.0 MiB are in use.*maxMemory/);
    x.dispose();
    empty([2 ** 18], small, "f32").dispose();
    small.dispose();
  });

  test("works with a caller's device and buffers, without copies", async () => {
    const gpu = await (await findAdapter())!.requestDevice();
    const theirs = (await getDevice("webgpu", { device: gpu })) as WebGpuDevice;
    const buffer = gpu.createBuffer({ size: 32, usage: 0x80 | 0x04 | 0x08, mappedAtCreation: true });
    new Float32Array(buffer.getMappedRange()).set([9, 1, 2, 3]);
    buffer.unmap();
    const x = fromGPUBuffer(buffer, [3], { device: theirs, byteOffset: 4 });
    const y = scale(x, 10);
    expect([...(await y.data())]).toEqual([10, 20, 30]);
    expect(gpuBuffer(x)).toEqual({ buffer, byteOffset: 4, byteLength: 12 });
    expect(() => fromGPUBuffer(buffer, [9], { device: theirs })).toThrow(/needs 36 bytes, got a buffer of 32/);
    x.dispose();
    theirs.dispose();
    gpu.destroy();
  });

  test("uses the matrix units of a caller's device that has them", async () => {
    const gpu = await requestDevice((await findAdapter())!);
    const theirs = (await getDevice("webgpu", { device: gpu })) as WebGpuDevice;
    expect(theirs.matrixUnits).toEqual(device.matrixUnits);
    theirs.dispose();
    gpu.destroy();
  });

  test("rejects pending work when the device is lost, with the cause, and is made anew", async () => {
    const gpu = await requestDevice((await findAdapter())!);
    const doomed = await getDevice("webgpu", { device: gpu });
    const x = tensor([1, 2], [2], { device: doomed });
    const pending = scale(x, 2).data();
    gpu.destroy();
    await expect(pending).rejects.toThrow(/the device was lost \(destroyed/);
    await expect(x.data()).rejects.toThrow(/getDevice\("webgpu"\) makes a new one/);
    expect(() => empty([1], doomed, "f32")).toThrow(/was lost/);
    const before = (await getDevice("webgpu")) as WebGpuDevice;
    before.gpu.destroy();
    await before.gpu.lost;
    const after = await getDevice("webgpu");
    expect(after).not.toBe(before);
    expect([...(await scale(tensor([4], [1], { device: after }), 2).data())]).toEqual([8]);
  });

  test("names the first operation that made a NaN, in check mode", async () => {
    const checked = await getDevice("webgpu", { check: true });
    for (const dtype of ["f32", "f16", "bf16"] as const) {
      const good = tensor([1, 2, 3], [3], { device: checked, dtype });
      const bad = tensor([1, 2, Number.NaN], [3], { device: checked, dtype });
      checked.assertNumbers("fine", good.storage);
      await checked.sync();
      checked.assertNumbers("fine", good.storage);
      checked.assertNumbers("culprit", bad.storage);
      checked.assertNumbers("victim", bad.storage);
      await expect(checked.sync()).rejects.toThrow("culprit: produced a NaN");
      await checked.sync();
    }
    checked.dispose();
  });

  test("looks for NaN in a caller's buffer from where the values begin, and no further", async () => {
    const gpu = await (await findAdapter())!.requestDevice();
    const theirs = await getDevice("webgpu", { device: gpu, check: true });
    const buffer = gpu.createBuffer({ size: 32, usage: 0x80 | 0x04 | 0x08, mappedAtCreation: true });
    new Uint16Array(buffer.getMappedRange()).set([0x7fc0, 0x7fc0, 1, 2, 0x7fc0, 0x7fc0]); // bf16 NaN
    buffer.unmap();
    const like = { device: theirs, dtype: "bf16" } as const;
    theirs.assertNumbers("two", fromGPUBuffer(buffer, [2], { ...like, byteOffset: 4 }).storage);
    await theirs.sync();
    theirs.assertNumbers("three", fromGPUBuffer(buffer, [3], { ...like, byteOffset: 4 }).storage);
    await expect(theirs.sync()).rejects.toThrow("three: produced a NaN");
    theirs.dispose();
    gpu.destroy();
  });

  test("keeps indices inside arrays, unless told not to", async () => {
    const beyond: KernelSource = {
      name: "beyond",
      constants: {},
      tensors: { y: { dtype: "i32", access: "write" } },
      parameters: { at: "u32" },
      // Two arrays, so that what lies beyond the first is ours too.
      body: () => `
var<workgroup> first: array<i32, 8>;
var<workgroup> second: array<i32, 8>;
@compute @workgroup_size(1)
fn main() {
  for (var i = 0u; i < 8u; i++) { first[i] = i32(i); second[i] = i32(i); }
  workgroupBarrier();
  store_y(0u, first[P.at]);
  store_y(1u, second[P.at]);
}`,
    };
    const look = async (on: WebGpuDevice, at: number) => {
      const y = empty([2], on, "i32");
      on.dispatch(beyond, { tensors: { y }, parameters: { at }, workgroups: [1] });
      return [...(await y.data())];
    };
    const checked = (await getDevice("webgpu")) as WebGpuDevice;
    const unchecked = (await getDevice("webgpu", { boundsChecks: false })) as WebGpuDevice;
    for (const on of [checked, unchecked]) expect(await look(on, 5)).toEqual([5, 5]);
    expect(await look(checked, 11)).toEqual([7, 7]);
    expect(await look(unchecked, 11)).not.toEqual([7, 7]);
    unchecked.dispose();
  });
});
