import { expect, test } from "vitest";
import { getDevice } from "../src/devices/get-device.js";
import type { WebGpuDevice } from "../src/devices/webgpu/device.js";
import * as ops from "../src/ops/index.js";
import { full } from "../src/ops/index.js";
import { tensor } from "../src/tensor/create.js";
import type { Tensor } from "../src/tensor/tensor.js";
import { expectLikeOracle } from "./compare.js";
import { describeOnGpu, hasAdapter } from "./devices.js";

const oracle = await getDevice("oracle");
const device = hasAdapter ? await getDevice("webgpu") : oracle;
const portable = hasAdapter ? await getDevice("webgpu", { portable: true }) : oracle;

const { neg, exp, sqrt, abs, square, tanh, sigmoid, logSigmoid, relu, gelu, silu, add, sub, mul, div } = ops;
const unary = Object.entries({ neg, exp, sqrt, abs, square, tanh, sigmoid, logSigmoid, relu, gelu, silu });
const binary = Object.entries({ add, sub, mul, div });
const dtypes = ["f32", "f16", "bf16"] as const;

describeOnGpu("tensor operations on webgpu", () => {
  test.each(unary)("%s", async (name, fn) => {
    const value = (x: number) => (name === "sqrt" ? Math.abs(x) + 0.1 : x);
    await expectLikeOracle(device, oracle, name, fn, { shapes: [[3, 5, 7]], value });
    await expectLikeOracle(device, oracle, name, (x) => fn(x.transpose()), { shapes: [[6, 5]], value });
  });

  test.each(dtypes)("two tensors, broadcast, %s", async (dtype) => {
    const value = (x: number, input: number) => (input === 1 ? Math.abs(x) + 0.5 : x);
    for (const [name, fn] of binary) {
      for (const shapes of [
        [
          [4, 6],
          [4, 6],
        ],
        [
          [2, 3, 5],
          [3, 1],
        ],
        [
          [1, 5],
          [4, 1],
        ],
      ]) {
        await expectLikeOracle(device, oracle, name, fn, { shapes, dtype, value });
      }
    }
    await expectLikeOracle(device, oracle, "numbers", (x) => ops.sub(2, ops.div(ops.mul(x, 3), 7)), {
      shapes: [[11]],
      dtype,
    });
  });

  test.each(dtypes)("views, copies, padding and joining, %s", async (dtype) => {
    const cases: [string, number[][], (...x: Tensor[]) => Tensor][] = [
      ["slice", [[5, 7]], (x) => x.slice(1, 2, 5).contiguous()],
      ["transpose", [[3, 4, 5]], (x) => x.permute([2, 0, 1]).contiguous()],
      ["pad", [[3, 5]], (x) => ops.pad(x, 1, 1, 2)],
      ["pad rows", [[3, 5]], (x) => ops.pad(x, 0, 2, 0)],
      [
        "concat",
        [
          [2, 3],
          [2, 4],
        ],
        (a, b) => ops.concat([a, b], 1),
      ],
      [
        "concat rows",
        [
          [2, 6],
          [3, 6],
        ],
        (a, b) => ops.concat([a, b], 0),
      ],
      ["cast", [[9]], (x) => ops.cast(ops.cast(x, "f32"), dtype)],
      ["split", [[4, 6]], (x) => x.split([2, 4])[1].contiguous()],
    ];
    for (const [name, shapes, fn] of cases) await expectLikeOracle(device, oracle, name, fn, { shapes, dtype });
  });

  test("integers", async () => {
    const x = tensor([7, -3, 2147483647], [3], { device, dtype: "i32" });
    expect([...(await ops.add(x, x).data())]).toEqual([14, -6, -2]);
    expect([...(await full([2], -70000, { device, dtype: "i32" }).data())]).toEqual([-70000, -70000]);
    const wide = tensor([1.9, -1.9, 3e9, -3e9, Number.NaN], [5], { device });
    expect([...(await ops.cast(wide, "i32").data())]).toEqual([1, -1, 2147483647, -2147483648, 0]);
  });

  test.each(dtypes)("sums and maxima, %s", async (dtype) => {
    for (const axis of [0, 1, 2, undefined]) {
      const options = { shapes: [[3, 4, 5]], dtype };
      await expectLikeOracle(device, oracle, `sum ${axis}`, (x) => ops.sum(x, axis), options);
      await expectLikeOracle(device, oracle, `mean ${axis}`, (x) => ops.mean(x, axis, { keepDims: true }), options);
      await expectLikeOracle(device, oracle, `max ${axis}`, (x) => ops.max(x, axis), options);
      await expectLikeOracle(device, oracle, `of a view ${axis}`, (x) => ops.sum(x.transpose(), axis), options);
    }
    await expectLikeOracle(device, oracle, "long rows", (x) => ops.sum(x, 1), { shapes: [[2, 300_000]], dtype: "f32" });
    await expectLikeOracle(device, oracle, "long columns", (x) => ops.mean(x, 0), {
      shapes: [[5000, 3]],
      dtype: "f32",
    });
  });

  const forms: [string, (a: Tensor, b: Tensor) => Tensor, (m: number, k: number, n: number) => number[][]][] = [
    [
      "a·b",
      (a, b) => a.matmul(b),
      (m, k, n) => [
        [m, k],
        [k, n],
      ],
    ],
    [
      "aᵀ·b",
      (a, b) => a.transpose().matmul(b),
      (m, k, n) => [
        [k, m],
        [k, n],
      ],
    ],
    [
      "a·bᵀ",
      (a, b) => a.matmul(b.transpose()),
      (m, k, n) => [
        [m, k],
        [n, k],
      ],
    ],
  ];
  for (const [where, on] of [
    ["portable", () => portable],
    ["as the adapter allows", () => device],
  ] as const) {
    test.each(dtypes)(`matrix products, ${where}, %s`, async (dtype) => {
      for (const [name, fn, shapes] of forms) {
        for (const [m, k, n] of [
          [1, 1, 2],
          [5, 300, 9],
          [65, 33, 18],
          [70, 40, 130],
        ]) {
          await expectLikeOracle(on(), oracle, `${name} ${m} ${k} ${n}`, fn, { shapes: shapes(m, k, n), dtype });
        }
      }
      await expectLikeOracle(on(), oracle, "batches", (a, b) => a.matmul(b), {
        shapes: [
          [2, 1, 5, 6],
          [3, 6, 4],
        ],
        dtype,
      });
      // So many matrices that workgroups take two tiles of rows each.
      const transposed = (a: Tensor, b: Tensor) => a.transpose().matmul(b.transpose());
      for (const [name, fn, first, second] of [
        ["many", (a: Tensor, b: Tensor) => a.matmul(b), [130, 6], [6, 3]],
        ["many, transposed", transposed, [6, 130], [3, 6]],
      ] as const) {
        await expectLikeOracle(on(), oracle, name, fn, { shapes: [[130, ...first], [...second]], dtype });
      }
    });
  }

  test("matrix units keep the range of bf16", async (context) => {
    const { matrixUnits } = device as WebGpuDevice;
    if (!matrixUnits) return context.skip("the adapter has no matrix units");
    for (const scale of [1e-30, 1e-3, 1, 1e5, 1e18]) {
      await expectLikeOracle(device, oracle, `scale ${scale}`, (a, b) => a.matmul(b), {
        shapes: [
          [33, 20],
          [20, 34],
        ],
        dtype: "bf16",
        value: (x, input) => (input === 0 ? scale * x : x),
      });
    }
  });
});
