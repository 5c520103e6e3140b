import { expect, test } from "vitest";
import { checkGradients, compare, useDevices } from "../../../test/compare-devices.js";
import { ones, tensor } from "../../tensor/create.js";
import { noGrad } from "../../tensor/tape.js";
import { crossEntropy, linearCrossEntropy, linearCrossEntropyRows } from "./index.js";

const devices = useDevices();
const ids = (values: number[], shape: readonly number[] = [values.length]) => ({
  shape,
  values,
  dtype: "i32" as const,
});

test("values by hand: equal logits, and a large one", async () => {
  for (const device of [devices.oracle(), devices.wasm()]) {
    const targets = tensor([1, 0], undefined, { device, dtype: "i32" });
    const even = tensor(
      [
        [5, 5, 5],
        [5, 5, 5],
      ],
      undefined,
      { device },
    );
    expect(await crossEntropy(even, targets).item()).toBeCloseTo(Math.log(3), 6);
    const far = tensor(
      [
        [0, 1000, 0],
        [-1000, -2000, -3000],
      ],
      undefined,
      { device },
    );
    expect(await crossEntropy(far, targets).item()).toBe(0);
  }
});

test("gradients are the differences of outputs", async () => {
  const targets = ids([2, 0, -1, 3], [2, 2]);
  await checkGradients({ logits: { shape: [2, 2, 4] }, targets }, ({ logits, targets }) =>
    crossEntropy(logits, targets),
  );
  const specs = { x: { shape: [2, 2, 3] }, weight: { shape: [4, 3] }, targets };
  await checkGradients(specs, ({ x, weight, targets }) => linearCrossEntropy(x, weight, targets, { count: 3 }));
});

test.each(["f32", "f16", "bf16"] as const)("wasm agrees with the oracle, %s", async (dtype) => {
  for (const [rows, width, classes] of [
    [1, 3, 1],
    [9, 5, 7],
    [70, 16, 257],
  ]) {
    const targets = ids(Array.from({ length: rows }, (_, k) => (k % 5 === 3 ? -1 : (k * 29) % classes)));
    await compare({ logits: { shape: [rows, classes], dtype }, targets }, ({ logits, targets }) =>
      crossEntropy(logits, targets),
    );
    const specs = { x: { shape: [rows, width], dtype }, weight: { shape: [classes, width], dtype }, targets };
    await compare(specs, ({ x, weight, targets }) => linearCrossEntropy(x, weight, targets));
    await compare(specs, ({ x, weight, targets }) => linearCrossEntropyRows(x, weight, targets));
  }
});

test("many blocks of rows add up to the whole", async () => {
  // 40,000 classes: 64 rows a block, and f32 sums of 40,000 terms in d(x).
  const [rows, width, classes] = [150, 4, 40_000];
  const targets = ids(Array.from({ length: rows }, (_, k) => (k * 7919) % classes));
  const specs = { x: { shape: [rows, width] }, weight: { shape: [classes, width] }, targets };
  await compare(specs, ({ x, weight, targets }) => linearCrossEntropy(x, weight, targets), 1e-4);
  const device = devices.wasm();
  const like = { device, requiresGrad: true };
  const before = device.memory().used;
  device.resetPeak();
  const loss = linearCrossEntropy(
    ones([rows, width], like),
    ones([classes, width], like),
    tensor(targets.values, undefined, { device, dtype: "i32" }),
  );
  expect(await loss.item()).toBeCloseTo(Math.log(classes), 4);
  expect(device.memory().peak - before).toBeLessThan(rows * classes * 4); // the logits alone
  loss.backward();
});

test("without recording there is no gradient, and rows are the parts of the mean", async () => {
  const device = devices.wasm();
  const x = ones([4, 2], { device, requiresGrad: true });
  const weight = tensor(
    [
      [1, 0],
      [0, 2],
      [1, 1],
    ],
    undefined,
    { device, requiresGrad: true },
  );
  const targets = tensor([0, 1, 2, -1], undefined, { device, dtype: "i32" });
  const loss = noGrad(() => linearCrossEntropy(x, weight, targets));
  expect(loss.requiresGrad).toBe(false);
  const rows = [...(await linearCrossEntropyRows(x, weight, targets).data())];
  expect(rows[3]).toBe(0);
  expect(rows.reduce((a, b) => a + b, 0) / 4).toBeCloseTo(await loss.item(), 6);
  const wrong = tensor([0, 1, 3, 0], undefined, { device, dtype: "i32" });
  expect(() => linearCrossEntropy(x, weight, wrong)).toThrow(/targets must be from 0 to 2, or -1, got 3 at 2/);
});
