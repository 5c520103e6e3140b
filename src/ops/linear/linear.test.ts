import { expect, test } from "vitest";
import { checkGradients, compare, useDevices } from "../../../test/compare-devices.js";
import { ones, tensor } from "../../tensor/create.js";
import { noGrad } from "../../tensor/tape.js";
import { linear } from "./index.js";

const devices = useDevices();
const ACTIVATIONS = ["none", "gelu", "relu", "silu"] as const;

test("values by hand", async () => {
  const device = devices.oracle();
  const like = { device };
  const x = tensor([[1, 2]], undefined, like);
  const weight = tensor(
    [
      [1, 0],
      [0, -1],
      [3, 1],
    ],
    undefined,
    like,
  );
  const bias = tensor([10, 0, -5], undefined, like);
  expect([...(await linear(x, weight, bias).data())]).toEqual([11, -2, 0]);
  expect([...(await linear(x, weight, bias, { activation: "relu" }).data())]).toEqual([11, 0, 0]);
});

test("gradients are the differences of outputs", async () => {
  const specs = { x: { shape: [2, 2, 3] }, weight: { shape: [4, 3] }, bias: { shape: [4] } };
  for (const activation of ACTIVATIONS) {
    await checkGradients(specs, ({ x, weight, bias }) => linear(x, weight, bias, { activation }));
  }
});

test.each(["f32", "f16", "bf16"] as const)("wasm agrees with the oracle, %s", async (dtype) => {
  for (const [rows, inputs, outputs] of [
    [1, 1, 1],
    [1, 128, 67],
    [4, 30, 9],
    [3, 1000, 90],
    [5, 3, 7],
    [130, 64, 96],
    [65, 300, 20],
  ]) {
    for (const activation of ACTIVATIONS) {
      const specs = {
        x: { shape: [rows, inputs], dtype },
        weight: { shape: [outputs, inputs], dtype },
        bias: { shape: [outputs], dtype },
      };
      await compare(
        specs,
        ({ x, weight, bias }) => linear(x, weight, bias, { activation }),
        dtype === "f32" ? 1e-5 : undefined,
      );
      await compare(specs, ({ x, weight, bias }) => noGrad(() => linear(x, weight, bias, { activation })));
    }
  }
});

test("transposed weights and strided inputs are read in place", async () => {
  const specs = { x: { shape: [2, 5, 9] }, weight: { shape: [6, 4] } };
  await compare(specs, ({ x, weight }) => linear(x.slice(2, 1, 7), weight.transpose()));
});

test("shapes and dtypes that disagree are refused", () => {
  const device = devices.oracle();
  const t = (...shape: number[]) => ones(shape, { device });
  expect(() => linear(t(2, 3), t(4, 2))).toThrow(/weight must have shape \[outputs, 3\].*\[4, 2\]/);
  expect(() => linear(t(2, 3), t(4, 3), t(3))).toThrow(/bias must have shape \[4\]/);
  expect(() => linear(t(2, 3), ones([4, 3], { device, dtype: "bf16" }))).toThrow(/dtype/);
});
