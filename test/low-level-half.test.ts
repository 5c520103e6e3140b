import { describe, expect, it } from "vitest";
import { getDevice } from "../src/devices/get-device.js";
import type { WebGpuDevice } from "../src/devices/webgpu/device.js";
import { chunkAttention } from "../src/ops/chunk-attention/index.js";
import { chunkState } from "../src/ops/chunk-state/index.js";
import { queryState } from "../src/ops/query-state/index.js";
import { type Arrays, expectSame, type Problem, place, randomInputs, worstError } from "./attention.js";
import { deviceOf, isHere } from "./devices.js";
import { composeAndWhole, type Dims, draw, type Operation, operations, solveOn } from "./low-level.js";
import { attentionTolerance, degreeAllowance, IN_F16 } from "./tolerances.js";

/** chunkState, chunkAttention and queryState of half inputs; a scan has none. */
const ofHalves = (degree: number, gated: boolean, dims?: Dims): Operation[] =>
  operations(degree, gated, dims).filter(([name]) => name !== "stateScan");

const ODD: Dims = { batch: 2, time: 37, queryHeads: 6, heads: 2, headDim: 9, valueDim: 7, chunkSize: 16, scale: 0.7 };
const SHAPES: [string, Dims][] = [
  ["odd", ODD],
  ["one token", { ...ODD, time: 1 }],
  ["a chunk less one", { ...ODD, time: 15 }],
  ["a chunk", { ...ODD, time: 16 }],
  // An odd power of a negative number is one that powers of two don't hold: for the portable kernels everywhere.
  ["negative scale", { ...ODD, batch: 1, time: 17, scale: -0.3 }],
  ["a chunk and one", { ...ODD, batch: 1, time: 17, queryHeads: 3, heads: 1 }],
];

/** Sizes of inputs and upstream gradients, all powers of two; bf16 holds what f16 would not. */
const SIZES: [string, Record<string, number>][] = [
  ["large keys, small queries and values", { k: 2 ** 24, q: 2 ** -20, v: 2 ** -30 }],
  ["small keys, large queries and values", { k: 2 ** -24, q: 2 ** 20, v: 2 ** 30 }],
  ["large states, small sums", { s: 2 ** 60, z: 2 ** -40 }],
  ["small states, large sums", { s: 2 ** -40, z: 2 ** 40, q: 2 ** 10 }],
  ["smallest states", { s: 2 ** -110, z: 2 ** -100, q: 2 ** 60, k: 2 ** 40 }],
  ["largest states", { s: 2 ** 110, z: 2 ** 100, q: 2 ** -40, k: 2 ** -40 }],
  ["gradients of sums far above those of outputs", { sum: 2 ** 40, z: 2 ** 40 }],
  ["gradients of sums far below", { output: 2 ** 30, s: 2 ** 20, sum: 2 ** -20, z: 2 ** -20 }],
];

/** What the gradients of gates are sums and differences of: the largest x·dx / degree of a token's queries or keys. */
function cancelling(inputs: Arrays, found: Record<string, ArrayLike<number>>, degree: number): number {
  let most = 0;
  for (const name of ["q", "k"].filter((x) => inputs[x])) {
    const { values, shape } = inputs[name];
    const width = shape[3];
    for (let row = 0; row < values.length; row += width) {
      let product = 0;
      for (let i = row; i < row + width; i++) product += values[i] * found[`d${name}`][i];
      most = Math.max(most, Math.abs(product) / degree);
    }
  }
  return most;
}

const DEVICES = ["wasm", "webgpu", "webgpu, portable"] as const;

for (const name of DEVICES) {
  const kind = name === "wasm" ? "wasm" : "webgpu";
  describe.skipIf(!isHere(kind))(`low-level operations of half inputs on ${name}`, async () => {
    const oracle = await getDevice("oracle");
    const portable = name.endsWith("portable");
    const device = portable && isHere(kind) ? await getDevice(kind, { portable }) : await deviceOf(kind);
    const inF16 = !portable && (device as Partial<WebGpuDevice>).matrixUnits !== undefined;

    const tolerance = (degree: number, dtype: "f16" | "bf16") => (what: string) => {
      const kindOf = what.startsWith("d") ? "gradient" : "output";
      const half = ["dq", "dk", "dv"].includes(what);
      const own = inF16 ? IN_F16[kindOf] : attentionTolerance(kind, half ? dtype : "f32", kindOf);
      return degreeAllowance(degree) * own;
    };
    async function check(
      [, ins, outs, run]: Operation,
      degree: number,
      dtype: "f16" | "bf16",
      size = {},
      left?: string,
    ) {
      const inputs = draw(ins, 1, dtype, size);
      const upstream = draw(outs, 2, "f32", size);
      if (left) delete upstream[left];
      const truth = await solveOn(oracle, inputs, upstream, run);
      const found = await solveOn(device, inputs, upstream, run);
      expect(Object.keys(found)).toEqual(Object.keys(truth));
      // Each by itself: nothing is normalised, so only gates' gradients are differences.
      for (const part of Object.keys(truth)) {
        const error = worstError(found[part], truth[part], part === "dlogG" ? cancelling(inputs, truth, degree) : 0);
        expect(error, `${part}: worst error relative to the largest value`).toBeLessThanOrEqual(
          tolerance(degree, dtype)(part),
        );
      }
    }

    for (const degree of [1, 2, 3, 4]) {
      for (const [n, gated] of [true, false].entries()) {
        for (const [shape, dims] of SHAPES) {
          const dtype = (degree + n) % 2 ? "bf16" : "f16";
          it.each(ofHalves(degree, gated, dims))(
            `%s, ${shape}, p=${degree}, gated ${gated}, ${dtype}`,
            async (...op) => {
              await check(op, degree, dtype);
            },
          );
        }
      }
      for (const [sizes, size] of SIZES) {
        it.each(ofHalves(degree, true, ODD))(`%s, ${sizes}, p=${degree}`, async (...op) => {
          // (q·k)^p and φ(k) must themselves be numbers that f32 holds.
          const root = Object.fromEntries(
            Object.entries(size).map(([of, value]) => [
              of,
              "qk".includes(of) ? 2 ** Math.round(Math.log2(value) / degree) : value,
            ]),
          );
          await check(op, degree, "bf16", root);
        });
      }
    }

    it.each(ofHalves(2, true, { ...ODD, batch: 1, time: 70, headDim: 64, valueDim: 64, chunkSize: 64 }))(
      "%s, heads of 64",
      async (...op) => check(op, 2, "bf16"),
    );

    it.each(ofHalves(2, true).flatMap((op) => Object.keys(op[2]).map((left) => [op[0], left, op] as const)))(
      "%s, nothing arrives at %s",
      async (_, left, op) => check(op, 2, "bf16", {}, left),
    );

    it.each(ofHalves(2, true, { ...ODD, time: 0 }))("%s, no tokens", async (...op) => check(op, 2, "bf16"));
    it.each(ofHalves(2, true, { ...ODD, batch: 0 }))("%s, no sequences", async (...op) => check(op, 2, "bf16"));

    it("views of a wider tensor, as a projection of all three gives them", async () => {
      const { batch, time, queryHeads: m, heads, headDim: d } = ODD;
      const wide = draw({ q: [batch, time, m + 2 * heads, d] }, 3, "bf16");
      const results = [];
      for (const whole of [false, true]) {
        const { q: all } = place(device, wide);
        const parts = [all.slice(2, 0, m), all.slice(2, m, m + heads), all.slice(2, m + heads, m + 2 * heads)];
        const [q, k, v] = whole ? parts.map((x) => x.contiguous()) : parts;
        const states = chunkState(k, v, { chunkSize: 16 });
        const inside = chunkAttention(q, k, v, { chunkSize: 16 });
        const before = queryState(q, states, { chunkSize: 16 });
        results.push(await Promise.all([states.s, inside.output, before.output].map((x) => x.data())));
      }
      expect(results[0]).toEqual(results[1]);
    });

    it("gates of −∞ forget all that was before", async () => {
      for (const op of ofHalves(2, true, ODD)) {
        const forgetful: Operation = [...op];
        const [inputs, upstream] = [draw(op[1], 1, "bf16"), draw(op[2], 2)];
        inputs.logG.values = inputs.logG.values.map((x, i) => (i % 5 === 0 ? Number.NEGATIVE_INFINITY : x));
        const truth = await solveOn(oracle, inputs, upstream, forgetful[3]);
        const found = await solveOn(device, inputs, upstream, forgetful[3]);
        expectSame(found, truth, tolerance(2, "bf16"));
      }
    });

    it.each([1, 4, 11])("the four operations, normalised, are powerFull: chunkSize %i", async (chunkSize) => {
      const problem: Problem = {
        ...{ batch: 2, time: 11, queryHeads: 4, heads: 2, headDim: 3, valueDim: 5, degree: 2 },
        ...{ gated: true, initial: true, final: true, dtype: "bf16" },
      };
      const arrays: { inputs: Arrays; upstream: Arrays } = randomInputs(problem);
      const [parts, whole] = await composeAndWhole(device, arrays, chunkSize);
      expectSame(parts, whole, (what) => (what.startsWith("d") ? IN_F16.gradient : IN_F16.output));
    });
  });
}
