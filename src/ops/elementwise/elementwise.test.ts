import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { expectClose, expectDifferences, expectLikeOracle } from "../../../test/compare.js";
import type { Device, Tensor } from "../../index.js";
import * as p from "../../index.js";

let wasm: Device;
let oracle: Device;

beforeAll(async () => {
  wasm = await p.getDevice("wasm", { threads: 2 });
  oracle = await p.getDevice("oracle", {});
});
afterAll(() => wasm.dispose());

const positive = (x: number) => Math.abs(x) + 0.1;
const spread = (x: number) => 4 * x;
const unary: Record<string, { fn: (x: Tensor) => Tensor; value?: (x: number) => number }> = {
  neg: { fn: p.neg },
  exp: { fn: p.exp },
  log: { fn: p.log, value: positive },
  sqrt: { fn: p.sqrt, value: positive },
  abs: { fn: p.abs },
  square: { fn: p.square },
  tanh: { fn: p.tanh },
  sigmoid: { fn: p.sigmoid, value: spread },
  logSigmoid: { fn: p.logSigmoid, value: spread },
  relu: { fn: p.relu },
  gelu: { fn: p.gelu, value: spread },
  silu: { fn: p.silu, value: spread },
};
const far = (x: number, k: number) => (k === 1 ? Math.sign(x) * positive(x) : x);
const binary = { add: p.add, sub: p.sub, mul: p.mul, div: p.div };
const views: Record<string, (x: Tensor) => Tensor> = {
  whole: (x) => x,
  transposed: (x) => x.transpose(),
  sliced: (x) => x.slice(1, 1, 6),
  stretched: (x) => x.slice(0, 0, 1).expand([4, x.shape[1]]),
};

describe("one tensor", () => {
  for (const [name, { fn, value }] of Object.entries(unary)) {
    test(`${name} like the oracle`, async () => {
      for (const shape of [[], [1], [0, 3], [5], [3, 7], [40_001]]) {
        await expectLikeOracle(wasm, oracle, `${name} ${shape}`, fn, { shapes: [shape], value });
      }
      for (const dtype of ["f16", "bf16"] as const) {
        await expectLikeOracle(wasm, oracle, `${name} ${dtype}`, fn, { shapes: [[3, 7]], value, dtype });
      }
      for (const [view, of] of Object.entries(views)) {
        await expectLikeOracle(wasm, oracle, `${name} ${view}`, (x) => fn(of(x)), { shapes: [[3, 7]], value });
      }
    });

    test(`${name} against finite differences`, async () => {
      await expectDifferences(oracle, name, fn, { shapes: [[2, 3]], value });
    });
  }
});

describe("two tensors", () => {
  for (const [name, fn] of Object.entries(binary)) {
    test(`${name} like the oracle`, async () => {
      const pairs = [
        [
          [3, 7],
          [3, 7],
        ],
        [[3, 7], [7]],
        [[7], [3, 7]],
        [
          [3, 1],
          [1, 7],
        ],
        [
          [2, 3, 5],
          [3, 1],
        ],
        [[], [4, 2]],
        [[0, 3], [3]],
        [
          [2, 1, 3, 1, 5],
          [4, 1, 2, 1],
        ],
        [[300, 130], [130]],
      ];
      for (const shapes of pairs) {
        await expectLikeOracle(wasm, oracle, `${name} ${JSON.stringify(shapes)}`, fn, { shapes, value: far });
      }
      for (const dtype of ["f16", "bf16"] as const) {
        await expectLikeOracle(wasm, oracle, `${name} ${dtype}`, fn, { shapes: [[3, 7], [7]], value: far, dtype });
      }
      for (const [view, of] of Object.entries(views)) {
        const both = (a: Tensor, b: Tensor) => fn(of(a), of(b));
        await expectLikeOracle(wasm, oracle, `${name} ${view}`, both, {
          shapes: [
            [3, 7],
            [3, 7],
          ],
          value: far,
        });
      }
      await expectLikeOracle(wasm, oracle, `${name} itself`, (x) => fn(x, x), { shapes: [[3, 7]], value: positive });
    });

    test(`${name} with a number, on either side`, async () => {
      for (const number of [2.5, -0.1]) {
        await expectLikeOracle(wasm, oracle, `${name} right`, (x) => fn(x, number), { shapes: [[3, 7]] });
        await expectLikeOracle(wasm, oracle, `${name} left`, (x) => fn(number, x), {
          shapes: [[3, 7]],
          value: positive,
        });
      }
    });

    test(`${name} against finite differences`, async () => {
      await expectDifferences(oracle, name, fn, {
        shapes: [[2, 3], [3]],
        value: (x) => Math.sign(x) * (1 + positive(x)),
      });
      await expectDifferences(oracle, name, (x) => fn(3, x), { shapes: [[3]], value: (x) => 1 + positive(x) });
    });
  }

  test("integers are exact and wrap around", async () => {
    for (const device of [wasm, oracle]) {
      const like = { device, dtype: "i32" } as const;
      const a = p.tensor([2 ** 31 - 1, -7, 123456789, 0, 5], undefined, like);
      const b = p.tensor([1, 3, 987654321, -1, 5], undefined, like);
      expect([...(await p.add(a, b).data())]).toEqual([-(2 ** 31), -4, 1111111110, -1, 10]);
      expect([...(await p.sub(a, b).data())]).toEqual([2 ** 31 - 2, -10, -864197532, 1, 0]);
      expect([...(await p.mul(a, b).data())]).toEqual([2 ** 31 - 1, -21, Math.imul(123456789, 987654321), 0, 25]);
      expect([...(await p.equal(a, b).data())]).toEqual([0, 0, 0, 0, 1]);
      expect([...(await p.add(a, 1).data())]).toEqual([-(2 ** 31), -6, 123456790, 1, 6]);
      expect([...(await p.sub(1, a).data())]).toEqual([-(2 ** 31) + 2, 8, -123456788, 1, -4]);
      expect(() => p.mul(a, 0.5)).toThrow("mul: an i32 tensor takes integers, got 0.5");
      expect(() => p.exp(a)).toThrow("exp: a float dtype is needed, got i32");
    }
  });

  test("errors name both sides", () => {
    const x = p.randn([2, 3], { device: wasm });
    expect(() => p.add(x, p.randn([2, 3], { device: wasm, dtype: "bf16" }))).toThrow(
      'add: tensors must have one dtype, got f32 and bf16; convert one with to("f32")',
    );
    expect(() => p.mul(x, p.randn([2, 3], { device: oracle }))).toThrow(/mul: tensors must be on one device/);
    expect(() => p.div(x, p.randn([4], { device: wasm }))).toThrow("div: shapes [2, 3] and [4] do not broadcast");
    expect(() => p.sub(1, 2)).toThrow(/at least one argument must be a tensor/);
  });
});

describe("precision and limits in f32", () => {
  /** Distance in units of the last place of the f32 nearest to `want`. */
  function ulps(got: number, want: number): number {
    if (Object.is(got, Math.fround(want)) || got === Math.fround(want)) return 0;
    const exponent = Math.max(Math.floor(Math.log2(Math.abs(want))), -126);
    return Math.abs(got - want) / 2 ** (exponent - 23);
  }
  const normal = Array.from({ length: 20_000 }, (_, k) => (k - 10_000) / 100);
  const tiny = normal.map((x) => x * 1e-6);
  const wide = normal.map((x) => 2 ** (1.27 * x));
  const cases: [string, (x: Tensor) => Tensor, (x: number) => number, number[], number][] = [
    ["exp", p.exp, Math.exp, [...normal, ...tiny], 1.5],
    ["log", p.log, Math.log, [...wide, ...tiny.map((x) => 1 + 1000 * x).filter((x) => x > 0)], 2],
    ["tanh", p.tanh, Math.tanh, [...normal, ...tiny, ...normal.map((x) => x / 50)], 2],
    ["sigmoid", p.sigmoid, (x) => 1 / (1 + Math.exp(-x)), [...normal.filter((x) => x > -87), ...tiny], 3],
    ["logSigmoid", p.logSigmoid, (x) => Math.min(x, 0) - Math.log1p(Math.exp(-Math.abs(x))), [...normal, ...tiny], 3],
  ];
  for (const [name, fn, truth, inputs, limit] of cases) {
    test(`${name} within ${limit} units in the last place`, async () => {
      const x = Float32Array.from(inputs);
      const got = await fn(p.tensor(x, [x.length], { device: wasm })).data();
      let worst = [0, 0, 0];
      for (const [k, value] of x.entries()) {
        const error = ulps(got[k], truth(value));
        if (!(error <= worst[0])) worst = [error, value, got[k]];
      }
      expect(worst[0], `at ${worst[1]}: ${worst[2]}`).toBeLessThanOrEqual(limit);
    });
  }

  const { POSITIVE_INFINITY: inf, NaN: nan } = Number;
  const limits = [0, -0, inf, -inf, nan, 1e-45, 1e-39, 3e38, -3e38, 88.72, 88.73, -103.9, -104.5, 200, -200];
  for (const [name, { fn }] of Object.entries(unary)) {
    test(`${name} at 0, ±∞, NaN and the ends of the range`, async () => {
      const got = await fn(p.tensor(limits, [limits.length], { device: wasm })).data();
      const want = await fn(p.tensor(limits, [limits.length], { device: oracle })).data();
      for (const [k, x] of limits.entries()) {
        expectClose(`${name}(${x})`, [got[k]], [Math.fround(want[k])], Math.abs(want[k]) < 1e-37 ? 1 : 1e-6);
      }
    });
  }
});
