import { afterAll, beforeAll, expect, test } from "vitest";
import { expectDifferences, expectLikeOracle } from "../../../test/compare.js";
import type { Device, Tensor } from "../../index.js";
import { cast, concat, contiguous, full, getDevice, pad, randn, tensor } from "../../index.js";

let wasm: Device;
let oracle: Device;

beforeAll(async () => {
  wasm = await getDevice("wasm", { threads: 2 });
  oracle = await getDevice("oracle", {});
});
afterAll(() => wasm.dispose());

const dtypes = ["f32", "f16", "bf16"] as const;

test("contiguous copies any view", async () => {
  const views: ((x: Tensor) => Tensor)[] = [
    (x) => x,
    (x) => x.transpose(),
    (x) => x.permute([2, 0, 1]),
    (x) => x.slice(1, 1, 3),
    (x) => x.slice(2, 2, 2),
    (x) => x.slice(0, 1, 2).expand([5, 4, 6]),
  ];
  for (const dtype of dtypes) {
    for (const [k, view] of views.entries()) {
      await expectLikeOracle(wasm, oracle, `view ${k}`, (x) => contiguous(view(x)), { shapes: [[3, 4, 6]], dtype });
    }
  }
  await expectLikeOracle(wasm, oracle, "large", (x) => contiguous(x.transpose()), { shapes: [[301, 203]] });
});

test("copies keep every bit, NaN and integers too", async () => {
  const ints = Int32Array.from({ length: 30 }, (_, k) => Math.imul(k, 0x9e3779b9));
  const x = tensor(ints, [5, 6], { device: wasm, dtype: "i32" });
  expect(await contiguous(x.transpose()).transpose().data()).toEqual(ints);
});

test("full fills any dtype", async () => {
  for (const device of [wasm, oracle]) {
    for (const dtype of [...dtypes, "i32"] as const) {
      for (const value of [0, 1, -3, 16_777_217]) {
        if (value > 1e6 && dtype !== "i32") continue;
        expect([...(await full([3, 5], value, { device, dtype }).data())]).toEqual(new Array(15).fill(value));
      }
    }
    expect((await full([0, 5], 1, { device, dtype: "f32" }).data()).length).toBe(0);
  }
});

test("pad like the oracle", async () => {
  for (const dtype of dtypes) {
    for (const axis of [0, 1, 2, -1]) {
      for (const [before, after] of [
        [0, 0],
        [1, 0],
        [0, 2],
        [3, 1],
      ]) {
        const what = `pad ${axis} ${before} ${after}`;
        await expectLikeOracle(wasm, oracle, what, (x) => pad(x, axis, before, after), { shapes: [[3, 4, 5]], dtype });
      }
    }
  }
  await expectDifferences(oracle, "pad", (x) => pad(x, 1, 1, 2), { shapes: [[2, 3]] });
  expect(() => pad(randn([2], { device: wasm }), 0, -1, 0)).toThrow(/pad: the numbers of zeros/);
});

test("concat like the oracle", async () => {
  for (const dtype of dtypes) {
    for (const axis of [0, 1, -1]) {
      const of = (n: number) => [3, 4, 5].map((extent, k) => (k === (axis + 3) % 3 ? n : extent));
      const shapes = [of(2), of(1), of(0), of(3)];
      await expectLikeOracle(wasm, oracle, `concat ${axis}`, (...x) => concat(x, axis), { shapes, dtype });
    }
  }
  await expectDifferences(oracle, "concat", (a, b) => concat([a, b], 0), {
    shapes: [
      [2, 3],
      [1, 3],
    ],
  });
  const x = randn([2, 3], { device: wasm });
  expect(() => concat([x, randn([3, 3], { device: wasm })], 1)).toThrow(
    "concat: shapes must agree except along axis 1, got [2, 3] and [3, 3]",
  );
  expect(() => concat([], 0)).toThrow(/got an empty list/);
});

test("cast between formats, with its gradient", async () => {
  // The coarser format of the two sets the tolerance.
  for (const dtype of ["f16", "bf16"] as const) {
    const fine = (x: Tensor) => cast(cast(x, "f32"), dtype);
    await expectLikeOracle(wasm, oracle, `${dtype} to f32 and back`, fine, { shapes: [[7, 5]], dtype });
  }
  await expectLikeOracle(wasm, oracle, "bf16 to f16", (x) => cast(cast(x, "f16"), "bf16"), {
    shapes: [[7, 5]],
    dtype: "bf16",
  });
  for (const device of [wasm, oracle]) {
    const x = tensor([1.9, -1.9, 3e9, Number.NaN], undefined, { device });
    expect([...(await x.to("i32").data())]).toEqual([1, -1, 2 ** 31 - 1, 0]);
    expect([...(await x.to("i32").to("f32").data())].slice(0, 2)).toEqual([1, -1]);
  }
});
