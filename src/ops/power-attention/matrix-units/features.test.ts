import { expect, test } from "vitest";
import { featureOrder, GROUP } from "./features.js";

const dot = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a, (x, k) => x * b[k]).reduce((s, x) => s + x, 0);

/** The features of x in this order, unweighted. */
function expand(x: number[], octets: Int32Array, degree: number): number[] {
  return [...octets].flatMap((word) =>
    Array.from({ length: 8 }, (_, k) => {
      let value = x[8 * (word >>> 24) + k] ?? 0;
      for (let m = 0; m < degree - 1; m++) value *= x[(word >> (8 * m)) & 255] ?? 0;
      return value;
    }),
  );
}

test.each([
  [64, 2],
  [16, 2],
  [12, 2],
  [5, 1],
  [40, 1],
  [9, 3],
  [16, 4],
])("weighted products of features of %i elements are powers of degree %i of dot products", (headDim, degree) => {
  const { features, octets, weights, sorted, places, table } = featureOrder(headDim, degree, 2);
  expect(features % (2 * GROUP)).toBe(0);
  expect(octets.length * 8).toBe(features);
  const vector = (phase: number) => Array.from({ length: headDim }, (_, i) => Math.sin(phase + i * i) / 2);
  const [q, k] = [vector(1), vector(2)];
  const [a, b] = [q, k].map((x) => expand(x, octets, degree));
  const weighted = a.map((value, f) => value * weights[f]);
  expect(dot(weighted, b)).toBeCloseTo(dot(q, k) ** degree, 10);
  // Each sorted feature has one place.
  expect(new Set(places).size).toBe(table.length);
  for (const [m, f] of places.entries()) expect(sorted[f]).toBe(m);
  expect(sorted.filter((m) => m >= 0).length).toBe(table.length);
});

test("pads little at degree 2 with heads of 64", () => {
  expect(featureOrder(64, 2, 4).features).toBe(2304);
});
