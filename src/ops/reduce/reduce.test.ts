import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { expectDifferences, expectLikeOracle } from "../../../test/compare.js";
import type { Device, Tensor } from "../../index.js";
import { getDevice, max, mean, randn, sum, sumTo, tensor } from "../../index.js";

let wasm: Device;
let oracle: Device;

beforeAll(async () => {
  wasm = await getDevice("wasm", { threads: 2 });
  oracle = await getDevice("oracle", {});
});
afterAll(() => wasm.dispose());

for (const [name, fn] of Object.entries({ sum, mean, max })) {
  describe(name, () => {
    test("like the oracle over every axis, kept or not", async () => {
      const shapes = [[5], [3, 7], [2, 3, 37], [1, 64], [70, 1], [4, 3, 2, 5], [200, 90]];
      for (const shape of shapes) {
        for (const axis of [undefined, ...shape.keys(), -1]) {
          for (const keepDims of [false, true]) {
            const what = `${name} [${shape}] axis ${axis}`;
            await expectLikeOracle(wasm, oracle, what, (x) => fn(x, axis, { keepDims }), { shapes: [shape] });
          }
        }
      }
      await expectLikeOracle(wasm, oracle, "scalar", (x) => fn(x), { shapes: [[]] });
    });

    test("views", async () => {
      const views: ((x: Tensor) => Tensor)[] = [
        (x) => x.transpose(),
        (x) => x.slice(2, 2, 9),
        (x) => x.slice(0, 1, 2).expand([4, 5, 11]),
        (x) => x.permute([2, 0, 1]),
      ];
      for (const [k, view] of views.entries()) {
        for (const axis of [undefined, 0, 1, 2]) {
          const what = `${name} view ${k} axis ${axis}`;
          await expectLikeOracle(wasm, oracle, what, (x) => fn(view(x), axis), {
            shapes: [[2, 5, 11].map((n, j) => (j === 0 && k === 2 ? 3 : n))],
          });
        }
      }
    });

    test("long axes, summed in pieces", async () => {
      for (const shape of [[50_001], [2, 40_000], [40_000, 3]]) {
        for (const axis of [undefined, ...shape.keys()]) {
          await expectLikeOracle(wasm, oracle, `${name} [${shape}] axis ${axis}`, (x) => fn(x, axis), {
            shapes: [shape],
          });
        }
      }
    });

    test("halves", async () => {
      for (const dtype of ["f16", "bf16"] as const) {
        for (const axis of [undefined, 0, 1]) {
          await expectLikeOracle(wasm, oracle, `${name} ${dtype}`, (x) => fn(x, axis), { shapes: [[37, 29]], dtype });
        }
      }
    });

    test("against finite differences", async () => {
      await expectDifferences(oracle, name, (x) => fn(x, 0), { shapes: [[3, 4]] });
      await expectDifferences(oracle, name, (x) => fn(x), { shapes: [[3, 4]] });
    });
  });
}

test("sumTo undoes broadcasting", async () => {
  for (const target of [[3, 1, 5], [5], [1], [], [2, 3, 4, 5], [1, 1, 4, 1]]) {
    await expectLikeOracle(wasm, oracle, `sumTo [${target}]`, (g) => sumTo(g, target), { shapes: [[2, 3, 4, 5]] });
  }
  expect(() => sumTo(randn([2, 3], { device: wasm }), [2])).toThrow("sumTo: [2, 3] is no broadcast of [2]");
});

test("sums of nothing are 0, largest of nothing is an error", async () => {
  for (const device of [wasm, oracle]) {
    const none = tensor([], [3, 0], { device });
    expect([...(await sum(none, 1).data())]).toEqual([0, 0, 0]);
    expect(await sum(none).item()).toBe(0);
    expect((await sum(none, 0).data()).length).toBe(0);
    expect(() => max(none)).toThrow("max: at least one element is needed, got shape [3, 0]");
  }
});

test("equal largest elements share the gradient; NaN is found", async () => {
  for (const device of [wasm, oracle]) {
    const x = tensor([1, 3, 3, 2], undefined, { device, requiresGrad: true });
    max(x).backward();
    expect([...(await x.grad!.data())]).toEqual([0, 0.5, 0.5, 0]);
    expect(await max(tensor([1, Number.NaN, 3], undefined, { device })).item()).toBeNaN();
  }
});

test("a mean of halves does not overflow on the way", async () => {
  const x = tensor(new Float32Array(4000).fill(1000), [4000], { device: wasm, dtype: "f16" });
  expect(await mean(x).item()).toBe(1000);
});
