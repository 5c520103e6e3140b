import { expect, test } from "vitest";
import { featureOrder, SQUARE_KINDS, squareGroups } from "./features.js";

const dot = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a, (x, k) => x * b[k]).reduce((s, x) => s + x, 0);

/** The features of x in this order, unweighted, as kernels make them. */
function expand(x: number[], octets: Int32Array, degree: number): number[] {
  if (degree === 2) {
    const { pairs, triangles, ends } = squareGroups(x.length);
    const at = (block: number, k: number) => x[8 * block + k] ?? 0;
    return [...octets].flatMap((word, octet) => {
      const [low, high, kind, r] = [(word & 255) / 8, word >>> 24, (word >> 16) & 255, octet % 8];
      // Beyond the last one are words of nothing.
      if (octet >= 8 * (pairs + triangles) + ends) return Array(8).fill(0);
      const make = (k: number) => {
        if (kind === SQUARE_KINDS.pair) return at(low, r) * at(high, k);
        if (kind === SQUARE_KINDS.triangles) return k <= r ? at(low, r) * at(low, k) : at(high, r) * at(high, k);
        return at(high, k) ** 2;
      };
      return Array.from({ length: 8 }, (_, k) => make(k));
    });
  }
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
  [40, 2],
  [5, 2],
  [5, 1],
  [40, 1],
  [9, 3],
  [16, 4],
])("weighted products of features of %i elements are powers of degree %i of dot products", (headDim, degree) => {
  const { features, octets, weights, sorted, places, table } = featureOrder(headDim, degree, 2);
  expect(features % 32).toBe(0);
  expect(octets.length * 8).toBe(Math.ceil(features / 128) * 128);
  const vector = (phase: number) => Array.from({ length: headDim }, (_, i) => Math.sin(phase + i * i) / 2);
  const [q, k] = [vector(1), vector(2)];
  const [a, b] = [q, k].map((x) => expand(x, octets, degree));
  const weighted = a.slice(0, features).map((value, f) => value * weights[f]);
  expect(dot(weighted, b)).toBeCloseTo(dot(q, k) ** degree, 10);
  // Each sorted feature has one place.
  expect(new Set(places).size).toBe(table.length);
  for (const [m, f] of places.entries()) expect(sorted[f]).toBe(m);
  expect(sorted.filter((m) => m >= 0).length).toBe(table.length);
});

test("repeats no product at degree 2 with heads of 64", () => {
  expect(featureOrder(64, 2, 4).features).toBe((64 * 65) / 2);
});
