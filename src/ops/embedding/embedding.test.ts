import { expect, test } from "vitest";
import { compare, useDevices } from "../../../test/compare-devices.js";
import { ones, tensor } from "../../tensor/create.js";
import { embedding } from "./index.js";

const devices = useDevices();

test("rows are looked up, and their gradients added up", async () => {
  const device = devices.oracle();
  const weight = tensor(
    [
      [1, 2],
      [3, 4],
      [5, 6],
    ],
    undefined,
    { device, requiresGrad: true },
  );
  const ids = tensor([2, 0, 2], undefined, { device, dtype: "i32" });
  const out = embedding(weight, ids);
  expect([...(await out.data())]).toEqual([5, 6, 1, 2, 5, 6]);
  out.backward(
    tensor(
      [
        [1, 10],
        [2, 20],
        [4, 40],
      ],
      undefined,
      { device },
    ),
  );
  expect([...(await weight.grad!.data())]).toEqual([2, 20, 0, 0, 5, 50]);
});

test.each(["f32", "f16", "bf16"] as const)("wasm agrees with the oracle, %s", async (dtype) => {
  for (const [rows, width, count] of [
    [1, 1, 1],
    [7, 5, 300],
    [50, 66, 129],
    [256, 128, 64],
  ]) {
    const values = Int32Array.from({ length: count }, (_, k) => (k * 31 + (k >> 3)) % rows);
    const specs = {
      weight: { shape: [rows, width], dtype },
      ids: { shape: [1, count], dtype: "i32" as const, values },
    };
    await compare(specs, ({ weight, ids }) => embedding(weight, ids));
  }
});

test("an id that is no row is named", () => {
  for (const device of [devices.oracle(), devices.wasm()]) {
    const weight = ones([3, 2], { device });
    for (const id of [3, -1]) {
      const ids = tensor([0, id], undefined, { device, dtype: "i32" });
      expect(() => embedding(weight, ids)).toThrow(`ids must be from 0 to 2, got ${id} at 1`);
    }
    expect(() => embedding(weight, ones([2], { device }))).toThrow(/i32/);
  }
});
