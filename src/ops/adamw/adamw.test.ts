import { expect, test } from "vitest";
import { useDevices, worst } from "../../../test/compare-devices.js";
import { randn, tensor, zeros } from "../../tensor/create.js";
import type { DType } from "../../tensor/dtype.js";
import { squareSum } from "../square-sum/index.js";
import { adamw } from "./index.js";

const devices = useDevices();
const RATES = { learningRate: 0.1, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: 0.5, maxNorm: 1 };

test("the first update by hand", async () => {
  for (const device of [devices.oracle(), devices.wasm()]) {
    const parameter = tensor([1, -2], undefined, { device });
    const gradient = tensor([3, -4], undefined, { device }); // norm 5, clipped to 1: [.6, -.8]
    const [mean, square] = [zeros([2], { device }), zeros([2], { device })];
    const squaredNorm = squareSum([gradient]);
    expect(await squaredNorm.item()).toBe(25);
    adamw({ ...RATES, step: 1 }, { parameter, gradient, mean, square, squaredNorm });
    // Corrected for the first step, mean / √square is the gradient's sign: 1 − .1·(1 + .5·1), −2 − .1·(−1 + .5·−2).
    const near = async (t: typeof mean, want: number[]) =>
      expect(worst([...(await t.data())], want)).toBeLessThan(1e-6);
    await near(parameter, [0.85, -1.8]);
    await near(mean, [0.06, -0.08]);
    await near(square, [0.0036, 0.0064]);
  }
});

test.each([
  ["f32", 2e-6],
  ["f16", 2e-3],
  ["bf16", 2e-2],
] as const)("wasm follows the oracle over ten updates, %s", async (dtype: DType, limit) => {
  const run = async (device: ReturnType<typeof devices.wasm>) => {
    const parameter = randn([8200, 3], { device, dtype, seed: 1 });
    const [mean, square] = [zeros(parameter.shape, { device }), zeros(parameter.shape, { device })];
    for (let step = 1; step <= 10; step++) {
      const gradient = randn(parameter.shape, { device, dtype, seed: step + 1 });
      const others = randn([77], { device, seed: step });
      const squaredNorm = squareSum([gradient, others]);
      adamw({ ...RATES, maxNorm: 100, step }, { parameter, gradient, mean, square, squaredNorm });
    }
    return [[...(await parameter.data())], [...(await mean.data())], [...(await square.data())]];
  };
  const [want, got] = [await run(devices.oracle()), await run(devices.wasm())];
  for (const [k, values] of want.entries()) expect(worst(got[k], values)).toBeLessThan(limit);
});

test("a half-precision copy follows the parameter", async () => {
  for (const device of [devices.oracle(), devices.wasm()]) {
    const parameter = tensor([1, -2, 3, 4, 5], undefined, { device });
    const rounded = zeros([5], { device, dtype: "bf16" });
    const gradient = tensor([1, 1, -1, 2, 3], undefined, { device });
    const [mean, square] = [zeros([5], { device }), zeros([5], { device })];
    const squaredNorm = squareSum([gradient]);
    adamw({ ...RATES, step: 1 }, { parameter, rounded, gradient, mean, square, squaredNorm });
    expect(worst([...(await rounded.data())], [...(await parameter.data())])).toBeLessThan(2 ** -8);
    expect((await parameter.data())[0]).not.toBe(1);
  }
});

test("shapes that disagree are refused", () => {
  const device = devices.oracle();
  const t = (n: number) => zeros([n], { device });
  const tensors = { parameter: t(2), gradient: t(3), mean: t(2), square: t(2), squaredNorm: t(1) };
  expect(() => adamw({ ...RATES, step: 1 }, tensors)).toThrow(/gradient must have the parameter's shape \[2\]/);
  expect(() => squareSum([])).toThrow(/at least one/);
});
