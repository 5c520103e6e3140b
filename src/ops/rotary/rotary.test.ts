import { expect, test } from "vitest";
import { checkGradients, compare, useDevices } from "../../../test/compare-devices.js";
import { tensor } from "../../tensor/create.js";
import { fromValues, type Tensor } from "../../tensor/tensor.js";
import { rotary, rotaryAngles } from "./index.js";

const devices = useDevices();

const turned = (x: Tensor, start = 0) => {
  const { cos, sin } = rotaryAngles(x.shape[3], start, x.shape[1]);
  const table = (values: Float32Array) => fromValues(x.device, values, [x.shape[1], x.shape[3] / 2], "f32");
  return rotary(x, table(cos), table(sin));
};

test("the first pair turns by one radian a position", async () => {
  const x = tensor([1, 0, 0, 0, 1, 0, 0, 0], [1, 2, 1, 4], { device: devices.oracle() });
  const got = await turned(x).data();
  for (const [k, want] of [1, 0, 0, 0, Math.cos(1), 0, Math.sin(1), 0].entries()) expect(got[k]).toBeCloseTo(want, 6);
});

test("products depend on the distance alone", async () => {
  const device = devices.oracle();
  const q = tensor([0.3, -1, 2, 0.5, 1, 0.2], [1, 1, 1, 6], { device });
  const k = tensor([1, 0.7, -0.4, 2, -1, 0.1], [1, 1, 1, 6], { device });
  const product = (i: number, j: number) => turned(q, i).mul(turned(k, j)).sum().item();
  expect(await product(17, 12)).toBeCloseTo(await product(5, 0), 6);
  expect(Math.abs((await product(6, 0)) - (await product(5, 0)))).toBeGreaterThan(1e-3);
});

test("gradients are the differences of outputs", async () => {
  await checkGradients({ x: { shape: [2, 3, 2, 4] } }, ({ x }) => turned(x, 3));
});

test.each(["f32", "f16", "bf16"] as const)("wasm agrees with the oracle, also on views, %s", async (dtype) => {
  for (const shape of [
    [1, 1, 1, 2],
    [2, 17, 3, 6],
    [1, 40, 2, 64],
  ]) {
    await compare({ x: { shape, dtype } }, ({ x }) => turned(x));
    const [b, t, h, d] = shape;
    const fused = { x: { shape: [b, t, h * d + 5], dtype } };
    await compare(fused, ({ x }) => turned(x.slice(2, 3, 3 + h * d).reshape(shape)));
  }
});

test("an odd head size is refused", () => {
  const device = devices.oracle();
  const x = tensor([1, 2, 3], [1, 1, 1, 3], { device });
  expect(() => turned(x)).toThrow(/rotary: .*even d/);
});
