import { expect, test } from "vitest";
import { checkGradients, compare, useDevices } from "../../../test/compare-devices.js";
import { ones, tensor } from "../../tensor/create.js";
import { rmsNorm } from "../rms-norm/index.js";
import { layerNorm } from "./index.js";

const devices = useDevices();

test("values by hand", async () => {
  const device = devices.oracle();
  const x = tensor([[1, 3]], undefined, { device });
  const weight = tensor([2, 4], undefined, { device });
  const bias = tensor([10, 20], undefined, { device });
  // mean 2, variance 1
  expect([...(await layerNorm(x, weight, bias, 1e-30).data())]).toEqual([8, 24]);
  // mean square 5
  const [a, b] = await rmsNorm(x, weight, 1e-30).data();
  expect([a, b]).toEqual([2 / Math.sqrt(5), 12 / Math.sqrt(5)]);
});

test("gradients are the differences of outputs", async () => {
  const specs = { x: { shape: [3, 5] }, weight: { shape: [5] }, bias: { shape: [5] } };
  await checkGradients(specs, ({ x, weight, bias }) => layerNorm(x, weight, bias));
  await checkGradients({ x: specs.x, weight: specs.weight }, ({ x, weight }) => layerNorm(x, weight));
  await checkGradients({ x: specs.x, weight: specs.weight }, ({ x, weight }) => rmsNorm(x, weight));
});

test.each(["f32", "f16", "bf16"] as const)("wasm agrees with the oracle, %s", async (dtype) => {
  for (const [rows, width] of [
    [1, 3],
    [3, 4],
    [33, 7],
    [100, 64],
    [65, 130],
  ]) {
    const specs = {
      x: { shape: [rows, width], dtype },
      weight: { shape: [width], dtype },
      bias: { shape: [width], dtype },
    };
    await compare(specs, ({ x, weight, bias }) => layerNorm(x, weight, bias), dtype === "f32" ? 1e-5 : undefined);
    await compare(
      { x: specs.x, weight: specs.weight },
      ({ x, weight }) => rmsNorm(x, weight),
      dtype === "f32" ? 1e-5 : undefined,
    );
  }
});

test("views are read as what they show", async () => {
  await compare(
    { x: { shape: [6, 5, 2] }, weight: { shape: [6] } },
    ({ x, weight }) => rmsNorm(x.permute([2, 1, 0]), weight),
    1e-5,
  );
});

test("a shape that does not fit is refused", () => {
  const device = devices.oracle();
  expect(() => layerNorm(ones([2, 3], { device }), ones([2], { device }))).toThrow(/layerNorm: weight.*\[3\]/);
  expect(() => rmsNorm(ones([2, 3], { device }), ones([3], { device }), 0)).toThrow(/epsilon/);
});
