import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { expectDifferences, expectLikeOracle } from "../../test/compare.js";
import { type Device, getDevice, manualSeed, ones, randn, type Tensor, tensor, uniform, zeros } from "../index.js";
import { Generator } from "./random.js";

let wasm: Device;
let oracle: Device;

beforeAll(async () => {
  wasm = await getDevice("wasm", { threads: 1 });
  oracle = await getDevice("oracle", {});
});
afterAll(() => wasm.dispose());

const count = (device: Device, shape: number[]) =>
  tensor(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, k) => k),
    shape,
    { device },
  );
const list = async (x: Tensor) => [...(await x.data())];

describe("making tensors", () => {
  test("nested arrays give the shape", async () => {
    const x = tensor(
      [
        [1, 2, 3],
        [4, 5, 6],
      ],
      undefined,
      { device: wasm },
    );
    expect(x.shape).toEqual([2, 3]);
    expect(await list(x)).toEqual([1, 2, 3, 4, 5, 6]);
    expect(tensor(7, undefined, { device: wasm }).shape).toEqual([]);
    expect(await tensor(7, undefined, { device: wasm }).item()).toBe(7);
    expect(() => tensor([[1], [2, 3]], undefined, { device: wasm })).toThrow("nested arrays must have equal lengths");
    expect(() => tensor([1, 2], [3], { device: wasm })).toThrow("tensor: shape [3] takes 3 values, got 2");
    expect(() => zeros([-1], { device: wasm })).toThrow(/a shape is made of integers of 0 or more/);
    expect(() => zeros([1], {} as never)).toThrow(/a device is needed/);
    expect(() => zeros([1], { device: wasm, dtype: "f64" as never })).toThrow(/dtype must be/);
    expect(() => zeros([1], { device: wasm, dtype: "i32", requiresGrad: true })).toThrow(
      /i32 tensors have no gradient/,
    );
  });

  test("values are stored in the dtype and read back widened", async () => {
    for (const device of [wasm, oracle]) {
      expect(await list(tensor([Math.PI], undefined, { device, dtype: "bf16" }))).toEqual([3.140625]);
      expect(await list(tensor([Math.PI], undefined, { device, dtype: "f16" }))).toEqual([3.140625]);
      expect(await list(tensor([-7.9], undefined, { device, dtype: "i32" }))).toEqual([-7]);
      expect(await list(ones([2, 2], { device, dtype: "f16" }))).toEqual([1, 1, 1, 1]);
    }
    expect(tensor([1], undefined, { device: wasm, dtype: "bf16" }).byteLength).toBe(2);
  });

  test("random values are reproducible, on every device, and continue from a saved state", async () => {
    const a = await list(randn([1000], { device: wasm, seed: 5 }));
    expect((await list(randn([1000], { device: oracle, seed: 5 }))).map(Math.fround)).toEqual(a);
    expect(await list(randn([1000], { device: wasm, seed: 6 }))).not.toEqual(a);
    manualSeed(11);
    const first = await list(uniform([5], { device: wasm, low: -2, high: 3 }));
    expect(await list(uniform([5], { device: wasm, low: -2, high: 3 }))).not.toEqual(first);
    manualSeed(11);
    expect(await list(uniform([5], { device: wasm, low: -2, high: 3 }))).toEqual(first);
    const generator = new Generator(3);
    generator.normal();
    const { state } = generator;
    const next = generator.normal();
    const other = new Generator();
    other.state = state;
    expect(other.normal()).toBe(next);
    expect(() => (other.state = [0, 0, 0, 0])).toThrow(/not all zero/);
  });

  test("random values have the moments they should", async () => {
    const moments = (x: number[]) => {
      const m = x.reduce((s, v) => s + v, 0) / x.length;
      return [m, x.reduce((s, v) => s + (v - m) ** 2, 0) / x.length];
    };
    const [m, v] = moments(await list(randn([100_000], { device: wasm, seed: 1 })));
    expect(Math.abs(m)).toBeLessThan(0.02);
    expect(Math.abs(v - 1)).toBeLessThan(0.02);
    const u = await list(uniform([100_000], { device: wasm, seed: 1, low: 2, high: 4 }));
    const [um, uv] = moments(u);
    expect(Math.abs(um - 3)).toBeLessThan(0.02);
    expect(Math.abs(uv - 1 / 3)).toBeLessThan(0.01);
    expect(u.every((x) => x >= 2 && x < 4)).toBe(true);
  });
});

describe("views", () => {
  test("share memory and show the right elements", async () => {
    for (const device of [wasm, oracle]) {
      const x = count(device, [2, 3, 4]);
      const { used } = device.memory();
      const t = x.permute([2, 0, 1]);
      expect(t.shape).toEqual([4, 2, 3]);
      const s = x.slice(1, 1).slice(-1, 1, 3);
      const r = x.reshape([6, -1]);
      const e = x.slice(0, 0, 1).expand([2, 3, 4]);
      const [left, right] = x.split([1, 3]);
      const merged = x.transpose(0, 1).reshape([3, 8]); // needs a copy
      expect(device.memory().used - used).toBeLessThanOrEqual(device.kind === "wasm" ? 128 : 192);
      expect(await list(t.slice(0, 1, 2))).toEqual([1, 5, 9, 13, 17, 21]);
      expect(await list(s)).toEqual([5, 6, 9, 10, 17, 18, 21, 22]);
      expect(r.shape).toEqual([6, 4]);
      expect(await list(e)).toEqual([...Array(12).keys(), ...Array(12).keys()]);
      expect(await list(left)).toEqual([0, 4, 8, 12, 16, 20]);
      expect(right.shape).toEqual([2, 3, 3]);
      expect((await list(merged)).slice(0, 8)).toEqual([0, 1, 2, 3, 12, 13, 14, 15]);
      expect(await list(t)).toEqual(await list(t.contiguous()));
      expect(await list(x.reshape([24]).reshape([2, 1, 12]).reshape([2, 3, 4]))).toEqual([...Array(24).keys()]);
    }
  });

  test("reshape keeps values whatever the strides", async () => {
    const shapes = [[24], [2, 12], [12, 2], [4, 6], [1, 24, 1], [2, 2, 3, 2]];
    for (const order of [
      [0, 1, 2],
      [1, 0, 2],
      [2, 1, 0],
      [0, 2, 1],
    ]) {
      const view = count(wasm, [2, 3, 4]).permute(order);
      const want = await list(view);
      for (const shape of shapes) expect(await list(view.reshape(shape))).toEqual(want);
    }
  });

  test("views outlive what they view", async () => {
    const { used } = wasm.memory();
    const x = count(wasm, [4, 4]);
    const row = x.slice(0, 1, 2);
    x.dispose();
    x.dispose();
    expect(await list(row)).toEqual([4, 5, 6, 7]);
    expect(() => x.slice(0, 0, 1)).toThrow(/used after it was disposed/);
    row.dispose();
    expect(wasm.memory().used).toBe(used);
  });

  test("gradients", async () => {
    const fns: Record<string, (x: Tensor) => Tensor> = {
      reshape: (x) => x.reshape([4, 6]),
      "reshape of a transposed view": (x) => x.transpose().reshape([6, -1]),
      permute: (x) => x.permute([2, 0, 1]),
      transpose: (x) => x.transpose(0, 1),
      slice: (x) => x.slice(1, 1, 3).slice(2, -2),
      "empty slice": (x) => x.slice(1, 2, 2),
      expand: (x) => x.slice(1, 0, 1).expand([5, 2, 3, 4]),
      contiguous: (x) => x.transpose().contiguous(),
      split: (x) => {
        const [a, b] = x.split(2, 2);
        return a.mul(b);
      },
      "part of a split": (x) => x.split([1, 2], 1)[1],
    };
    for (const [name, fn] of Object.entries(fns)) {
      await expectLikeOracle(wasm, oracle, name, fn, { shapes: [[2, 3, 4]] });
      if (name !== "empty slice") await expectDifferences(oracle, name, fn, { shapes: [[2, 3, 4]] });
    }
  });

  test("errors", () => {
    const x = zeros([2, 3], { device: wasm });
    expect(() => x.reshape([4, 2])).toThrow("reshape: [2, 3] (6 elements) does not fit [4, 2]");
    expect(() => x.reshape([-1, -1])).toThrow(/does not fit/);
    expect(() => x.reshape([4, -1])).toThrow(/does not fit/);
    expect(() => x.permute([0, 0])).toThrow(/permute: axes must name each of 2 axes once/);
    expect(() => x.slice(2, 0)).toThrow("slice: axis must be an integer from -2 to 1, got 2");
    expect(() => x.slice(0, 2, 1)).toThrow(/is not a range of axis 0/);
    expect(() => x.split(2)).toThrow(/do not divide into pieces of 2/);
    expect(() => x.split([-1, 4])).toThrow(/split: sizes must be integers of 0 or more/);
    expect(() => x.expand([3, 3])).toThrow("expand: [2, 3] does not stretch to [3, 3]");
  });
});

test("tensors move between devices", async () => {
  const x = randn([3, 4], { device: wasm, dtype: "bf16", requiresGrad: true, seed: 2 });
  const there = await x.transpose().copyTo(oracle);
  expect(there.requiresGrad).toBe(false);
  expect((await x.copyTo(oracle)).requiresGrad).toBe(true);
  const moved: Promise<Tensor> = x.to(oracle);
  expect((await moved).toString()).toBe("Tensor([3, 4], bf16, oracle)");
  expect(await list(await moved)).toEqual(await list(x));
  const converted: Tensor = x.to("f32");
  expect(converted.dtype).toBe("f32");
  expect(x.to("bf16")).toBe(x);
  expect(() => x.to("f64" as "f32")).toThrow("to: the target must be one of f32, f16, bf16, i32 or a device, got f64");
  await expect(x.copyTo("oracle" as never)).rejects.toThrow("copyTo: device must be a Device, got oracle");
  const back = await there.copyTo(wasm);
  expect(back.dtype).toBe("bf16");
  expect(await list(back.transpose())).toEqual(await list(x));
  await expect(x.item()).rejects.toThrow("item: a tensor of one element is needed, got shape [3, 4]; use data()");
});
