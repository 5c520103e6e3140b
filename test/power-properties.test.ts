import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { expandedDim, monomials } from "../src/feature-map.js";
import { powerFull } from "../src/power-attention.js";
import { PowerState } from "../src/state.js";
import type { Tensor } from "../src/tensor/tensor.js";
import { expectClose, expectSame, type Problem, place, randomInputs, solve } from "./attention.js";
import { DEVICES, describeOn, deviceOf } from "./devices.js";
import { attentionTolerance } from "./tolerances.js";

const problems: fc.Arbitrary<Problem & { chunkSize: number }> = fc
  .record({
    batch: fc.integer({ min: 1, max: 2 }),
    time: fc.integer({ min: 0, max: 9 }),
    heads: fc.integer({ min: 1, max: 2 }),
    group: fc.integer({ min: 1, max: 3 }),
    headDim: fc.integer({ min: 1, max: 5 }),
    valueDim: fc.integer({ min: 1, max: 5 }),
    degree: fc.integer({ min: 1, max: 4 }),
    gated: fc.boolean(),
    initial: fc.boolean(),
    final: fc.boolean(),
    chunkSize: fc.integer({ min: 1, max: 12 }),
    seed: fc.integer({ min: 0, max: 1e6 }),
  })
  .map(({ group, ...rest }) => ({ ...rest, queryHeads: rest.heads * group, options: { normalize: "none" as const } }));

describeOn(DEVICES, "any shape on %s", async (kind) => {
  const device = await deviceOf(kind);
  const tolerance = (name: string) =>
    16 * attentionTolerance(kind, "f32", name.startsWith("d") ? "gradient" : "output");

  it("chunked = quadratic, outputs and gradients", async () => {
    await fc.assert(
      fc.asyncProperty(problems, async ({ chunkSize, ...problem }) => {
        const arrays = randomInputs(problem);
        const { options } = problem;
        const chunked = await solve(device, { ...problem, options: { ...options, chunkSize } }, arrays);
        const quadratic = await solve(device, { ...problem, options: { ...options, chunkSize: null } }, arrays);
        expectSame(chunked, quadratic, tolerance);
      }),
      { numRuns: 60 },
    );
  }, 900_000); // each shape compiles kernels of its own where a processor plays a GPU
});

describeOn(DEVICES, "any walk on %s", async (kind) => {
  const device = await deviceOf(kind);
  const tolerance = 16 * attentionTolerance(kind, "f32", "output");

  it("of a PowerState = the whole sequence", async () => {
    const walks = fc.record({
      problem: problems,
      foldLength: fc.integer({ min: 1, max: 6 }),
      sizes: fc.array(fc.integer({ min: 0, max: 7 }), { minLength: 1, maxLength: 6 }),
    });
    await fc.assert(
      fc.asyncProperty(walks, async ({ problem, foldLength, sizes }) => {
        const time = sizes.reduce((a, b) => a + b, 0);
        const { batch, heads: kvHeads, headDim, valueDim, degree, queryHeads } = problem;
        const x = place(device, randomInputs({ ...problem, time, initial: false, final: false }).inputs);
        const normalize = "none";
        const whole = await powerFull(x.q, x.k, x.v, { logG: x.logG, degree, normalize }).data();
        using state = PowerState.empty({ device, batch, kvHeads, headDim, valueDim, degree, foldLength });
        const found = new Float64Array(whole.length);
        const width = queryHeads * valueDim;
        let t = 0;
        for (const size of sizes) {
          const at = (y: Tensor) => y.slice(1, t, t + size);
          const out = state.step(at(x.q), at(x.k), at(x.v), { logG: x.logG && at(x.logG), normalize });
          const values = await out.data();
          for (let b = 0; b < batch; b++) {
            found.set(values.slice(b * size * width, (b + 1) * size * width), (b * time + t) * width);
          }
          t += size;
        }
        expectClose(found, whole, tolerance, "output");
      }),
      { numRuns: 60 },
    );
  });
});

describe("the table of monomials", () => {
  it("holds each sorted index once, in order, and its orders add up to d^p", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 7 }), fc.integer({ min: 1, max: 6 }), (headDim, degree) => {
        const table = monomials(headDim, degree);
        expect(table.length).toBe(expandedDim(headDim, degree));
        const rows = Array.from({ length: table.length }, (_, m) =>
          Array.from(table.indices.subarray(m * degree, (m + 1) * degree)),
        );
        for (const [m, row] of rows.entries()) {
          expect(row.every((i, r) => i >= 0 && i < headDim && (r === 0 || row[r - 1] <= i))).toBe(true);
          if (m === 0) continue;
          const first = row.findIndex((i, r) => i !== rows[m - 1][r]);
          expect(first >= 0 && row[first] > rows[m - 1][first], "lexicographic order").toBe(true);
        }
        expect(table.multiplicities.reduce((a, b) => a + b, 0)).toBe(headDim ** degree);
      }),
    );
  });

  it.each([
    [0, 2, /headDim must be a positive integer, got 0/],
    [3, 1.5, /degree must be a positive integer, got 1.5/],
    [256, 200, /more monomials than a number can count/],
  ])("expandedDim(%d, %d) is refused", (headDim, degree, message) => {
    expect(() => expandedDim(headDim, degree)).toThrow(message);
  });
});
