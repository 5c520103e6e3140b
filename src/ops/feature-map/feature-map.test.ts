import { describe, expect, it } from "vitest";
import { checkGradients, exact, expectClose, place, poison, worstError } from "../../../test/attention.js";
import { DEVICES, describeOn, deviceOf, OTHERS } from "../../../test/devices.js";
import { attentionTolerance, FINITE_DIFFERENCE } from "../../../test/tolerances.js";
import type { Device } from "../../devices/device.js";
import { getDevice } from "../../devices/get-device.js";
import { OracleDevice } from "../../devices/oracle.js";
import { expandedDim } from "../../feature-map.js";
import { roundTo } from "../../tensor/dtype.js";
import { Generator } from "../../tensor/random.js";
import { sizeOf } from "../../tensor/shape.js";
import { featureMap } from "./index.js";

type Float = "f32" | "f16" | "bf16";

function arrays(shape: number[], degree: number, dtype: Float = "f32") {
  const generator = new Generator(11);
  const draw = (dims: number[], to: Float) => ({
    shape: dims,
    values: Float64Array.from({ length: sizeOf(dims) }, () => roundTo(to, generator.normal())),
    dtype: to,
  });
  const wide = [...shape.slice(0, -1), expandedDim(shape.at(-1)!, degree)];
  return { inputs: { x: draw(shape, dtype) }, upstream: { phi: draw(wide, "f32") } };
}

async function solve(device: Device, { inputs, upstream }: ReturnType<typeof arrays>, degree: number) {
  const { x } = place(device, inputs, true);
  const { phi: up } = place(device, upstream);
  poison(device);
  const phi = featureMap(x, degree);
  expect(phi.shape).toEqual(up.shape);
  expect(phi.dtype).toBe("f32");
  poison(device);
  phi.backward(up);
  expect(x.grad?.dtype).toBe(x.dtype);
  expect(x.grad?.shape).toEqual(x.shape);
  return { phi: await phi.data(), dx: await x.grad!.data() };
}

describe("gradients of featureMap against central differences", () => {
  it.each([1, 2, 3, 4, 5])("degree %i", async (degree) => {
    const { inputs, upstream } = arrays([2, 3], degree);
    await checkGradients(inputs, upstream, ({ x }) => ({ phi: featureMap(x, degree) }), FINITE_DIFFERENCE);
  });
});

describeOn(OTHERS, "featureMap on %s against the oracle", async (kind) => {
  const device = await deviceOf(kind);
  const oracle = await getDevice("oracle");
  const check = async (shape: number[], degree: number, dtype: Float = "f32") => {
    const problem = arrays(shape, degree, dtype);
    const [got, want] = [await solve(device, problem, degree), await solve(oracle, problem, degree)];
    const what = `${shape} degree ${degree} ${dtype}`;
    // Features are f32 whatever x is.
    expectClose(got.phi, want.phi, attentionTolerance(kind, "f32", "output"), `phi of ${what}`);
    expectClose(got.dx, want.dx, attentionTolerance(kind, dtype, "gradient"), `dx of ${what}`);
  };

  it.each([1, 2, 3, 4, 5, 7])("degree %i, head dims that fit no tile", async (degree) => {
    for (const headDim of [1, 2, 3, 5, 8]) for (const rows of [1, 17]) await check([rows, headDim], degree);
  });

  it.each([
    [16, 4],
    [64, 2],
    [100, 2],
    [128, 2],
    [256, 1],
    [30, 3],
  ])("head dim %i, degree %i: several items of features", (headDim, degree) => check([3, 6, headDim], degree));

  it.each(["f16", "bf16"] as const)("%s", async (dtype) => {
    await check([5, 4, 13], 2, dtype);
    await check([33, 4], 4, dtype);
  });

  it("no vectors, and leading axes of any number", async () => {
    await check([0, 4], 2);
    await check([4], 3);
    await check([2, 1, 3, 2, 6], 2);
  });
});

describeOn(DEVICES, "laws of featureMap on %s", async (kind) => {
  const device = await deviceOf(kind);

  it.each([1, 2, 3, 4])("φ(a)·φ(b) = (a·b)^%i", async (degree) => {
    const { values } = arrays([2, 9], degree).inputs.x;
    const { x } = place(device, { x: { shape: [2, 9], values, dtype: "f32" } });
    const phi = await featureMap(x, degree).data();
    const D = phi.length / 2;
    const dot = (a: ArrayLike<number>, n: number) => {
      let sum = 0;
      for (let k = 0; k < n; k++) sum += a[k] * a[n + k];
      return sum;
    };
    const size = (n: number) => Math.hypot(...values.slice(9 * n, 9 * n + 9)) ** degree;
    expect(Math.abs(dot(phi, D) - dot(values, 9) ** degree)).toBeLessThan(
      attentionTolerance(kind, "f32", "output") * size(0) * size(1),
    );
  });

  it("reads views, and knows one vector from the next", async () => {
    const { x } = place(device, { x: { ...arrays([6, 20], 2).inputs.x } });
    const turned = featureMap(x.transpose(), 2);
    expect(await turned.data()).toEqual(await featureMap(x.transpose().contiguous(), 2).data());
    const row = await featureMap(x.slice(0, 3, 4), 2).data();
    expect(worstError(row, (await featureMap(x, 2).data()).slice(3 * row.length, 4 * row.length))).toBe(0);
  });
});

describe("featureMap in float64", () => {
  it("is exact where f32 is not", async () => {
    const device = new OracleDevice();
    const third = exact(device, [1, 2], Float64Array.of(1 / 3, 1 / 7));
    const [a, b, c] = await featureMap(third, 2).data();
    expect([a, b, c]).toEqual([(1 / 3) * (1 / 3), Math.SQRT2 * (1 / 3) * (1 / 7), (1 / 7) * (1 / 7)]);
  });
});
