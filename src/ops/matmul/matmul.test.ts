import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { expectClose, expectDifferences, expectLikeOracle } from "../../../test/compare.js";
import { TOLERANCE } from "../../../test/tolerances.js";
import type { WasmDevice } from "../../devices/wasm/device.js";
import { f32x4 } from "../../devices/wasm/emitter.js";
import { type Device, getDevice, matmul, randn, scope, type Tensor } from "../../index.js";
import { empty } from "../../tensor/tensor.js";
import { relu } from "../elementwise/index.js";
import { multiply } from "./wasm.js";

let wasm: Device;
let oracle: Device;

beforeAll(async () => {
  wasm = await getDevice("wasm", { threads: 2 });
  oracle = await getDevice("oracle", {});
});
afterAll(() => wasm.dispose());

const T = (x: Tensor) => x.transpose();
const forms: Record<string, { fn: (a: Tensor, b: Tensor) => Tensor; flip: [boolean, boolean] }> = {
  a·b: { fn: matmul, flip: [false, false] },
  aᵀ·b: { fn: (a, b) => matmul(T(a), b), flip: [true, false] },
  a·bᵀ: { fn: (a, b) => matmul(a, T(b)), flip: [false, true] },
  aᵀ·bᵀ: { fn: (a, b) => matmul(T(a), T(b)), flip: [true, true] },
};
const flipped = (shape: number[], flip: boolean) => (flip ? [shape[1], shape[0]] : shape);

describe("matmul", () => {
  for (const [name, { fn, flip }] of Object.entries(forms)) {
    test(`${name} like the oracle, ragged sizes`, async () => {
      const sizes = [
        [1, 1, 1],
        [3, 5, 7],
        [4, 8, 8],
        [5, 300, 9],
        [65, 33, 17],
        [70, 257, 270],
        [2, 1, 300],
        [0, 3, 4],
        [3, 0, 4],
      ];
      for (const [m, k, n] of sizes) {
        const shapes = [flipped([m, k], flip[0]), flipped([k, n], flip[1])];
        await expectLikeOracle(wasm, oracle, `${name} ${m} ${k} ${n}`, fn, { shapes });
      }
    });

    for (const dtype of ["f16", "bf16"] as const) {
      test(`${name} in ${dtype}`, async () => {
        const shapes = [flipped([19, 41], flip[0]), flipped([41, 30], flip[1])];
        await expectLikeOracle(wasm, oracle, name, fn, { shapes, dtype });
      });
    }
  }

  test("leading axes broadcast", async () => {
    for (const shapes of [
      [
        [2, 3, 5, 6],
        [6, 4],
      ],
      [
        [2, 3, 5, 6],
        [3, 6, 4],
      ],
      [
        [5, 6],
        [2, 6, 4],
      ],
      [
        [2, 1, 5, 6],
        [1, 3, 6, 4],
      ],
      [
        [2, 3, 1, 6],
        [2, 1, 6, 4],
      ],
    ]) {
      await expectLikeOracle(wasm, oracle, JSON.stringify(shapes), matmul, { shapes });
    }
  });

  test("heads read as strided views", async () => {
    const heads = (x: Tensor) => x.reshape([2, 9, 3, 4]).permute([0, 2, 1, 3]);
    const fn = (q: Tensor, k: Tensor) => matmul(heads(q), T(heads(k)));
    await expectLikeOracle(wasm, oracle, "scores", fn, {
      shapes: [
        [2, 9, 12],
        [2, 9, 12],
      ],
    });
    const every = (x: Tensor) => x.reshape([6, 2, 7, 2]).slice(1, 1, 2).slice(3, 0, 1).reshape([6, 7]);
    await expectLikeOracle(wasm, oracle, "sliced", (a, b) => matmul(every(a), T(every(b))), {
      shapes: [
        [6, 28],
        [6, 28],
      ],
    });
  });

  test("gradients against finite differences", async () => {
    await expectDifferences(oracle, "matmul", matmul, {
      shapes: [
        [2, 3, 4],
        [4, 5],
      ],
    });
    await expectDifferences(oracle, "batched", matmul, {
      shapes: [
        [2, 1, 3, 4],
        [3, 4, 2],
      ],
    });
  });

  test("bias and activation are fused into the store", async () => {
    const device = wasm as WasmDevice;
    for (const dtype of ["f32", "bf16"] as const) {
      const like = { device, dtype };
      const [x, w, b] = [randn([13, 21], like), randn([21, 19], like), randn([19], like)];
      const out = empty([13, 19], device, dtype);
      multiply(device, out, x, w, {
        bias: b,
        activation: { key: "relu", write: (_f, v) => f32x4.max(v, f32x4.const(0)) },
      });
      const [p, q, r] = await Promise.all([x, w, b].map((t) => t.copyTo(oracle)));
      const want = relu(matmul(p, q).add(r));
      expectClose("linear", await out.data(), await want.data(), TOLERANCE.output[dtype]);
    }
  });

  test("one thread and two give the same bits", async () => {
    const one = await getDevice("wasm", { threads: 1 });
    const [a, b] = [randn([150, 300], { device: wasm, seed: 3 }), randn([300, 270], { device: wasm, seed: 4 })];
    const alone = matmul(await a.copyTo(one), await b.copyTo(one));
    expect(await matmul(a, b).data()).toEqual(await alone.data());
    one.dispose();
  });

  test("memory is given back", () => {
    const [a, b] = [randn([50, 60], { device: wasm }), randn([60, 70], { device: wasm })];
    scope(() => void matmul(a, b));
    const { used } = wasm.memory();
    for (let k = 0; k < 10; k++) scope(() => void matmul(a, b));
    expect(wasm.memory().used).toBe(used);
  });

  test("errors name the rule and the shapes", () => {
    const like = { device: wasm };
    expect(() => matmul(randn([2, 3], like), randn([2, 3], like))).toThrow(
      "matmul: columns of the first must be rows of the second, got [2, 3] and [2, 3]; transpose() one",
    );
    expect(() => matmul(randn([3], like), randn([3, 2], like))).toThrow(/need two axes or more/);
    expect(() => matmul(randn([2, 3], like), randn([3, 2], { device: wasm, dtype: "f16" }))).toThrow(/got f32 and f16/);
    expect(() => matmul(randn([2, 2, 3], like), randn([3, 3, 2], like))).toThrow(/do not broadcast/);
  });
});
