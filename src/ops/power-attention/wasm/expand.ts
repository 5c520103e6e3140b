import { type FunctionHandle, f32x4, i32, type ModuleBuilder, v128 } from "../../../devices/wasm/emitter.js";
import { LINE } from "../../../devices/wasm/tiles.js";

/** Features are produced in sub-blocks of this many; a run of the table never crosses one. */
export const SUB_BLOCK = 16;

/**
 * The monomials of degree p in sorted order as runs: those that share their first p − 1 factors, while the last
 * factor steps through consecutive dimensions. A run is [count, offset of the last factor's first line, offsets of the
 * p − 1 others], offsets in bytes of a transposed group [d][16].
 */
export interface FeatureRuns {
  readonly words: Int32Array;
  readonly wordsPerRun: number;
  /** First run of each sub-block, and the number of runs at the end. */
  readonly starts: readonly number[];
  readonly features: number;
}

/** Runs of the sorted monomials of `degree` over `dim` dimensions, cut at sub-blocks. */
export function featureRuns(dim: number, degree: number): FeatureRuns {
  const words: number[] = [];
  const starts: number[] = [];
  let features = 0;
  let runs = 0;
  const emit = (prefix: readonly number[], first: number) => {
    let at = first;
    while (at < dim) {
      if (features % SUB_BLOCK === 0) starts.push(runs);
      const count = Math.min(dim - at, SUB_BLOCK - (features % SUB_BLOCK));
      words.push(count, at * LINE, ...prefix.map((i) => i * LINE));
      at += count;
      features += count;
      runs++;
    }
  };
  const descend = (prefix: number[], first: number) => {
    if (prefix.length === degree - 1) return emit(prefix, first);
    for (let i = first; i < dim; i++) descend([...prefix, i], i);
  };
  descend([], 0);
  starts.push(runs);
  return { words: Int32Array.from(words), wordsPerRun: degree + 1, starts, features };
}

/** What happens to a feature's 16 values besides being stored. */
export type ExpandMode =
  /** Nothing more. */
  | "plain"
  /** `sums[f][4]` += the values times `aside[16]`, in four partial sums: the state's z. */
  | "sum"
  /** `aside[16]` += the values times z[f]: the row sums of queries against the state. */
  | "dot";

/**
 * Writes weights[16] · (monomials of x[d][16]) for the runs given: one line of 16 tokens a feature, `stride` bytes
 * apart. `table` points at the first run.
 */
export function writeExpand(m: ModuleBuilder, degree: number, mode: ExpandMode): FunctionHandle {
  const runBytes = 4 * (degree + 1);
  return m.function(
    `expand-${mode}`,
    [
      ["x", "i32"],
      ["weights", "i32"],
      ["table", "i32"],
      ["runs", "i32"],
      ["out", "i32"],
      ["stride", "i32"],
      ["aside", "i32"],
      ["sums", "i32"],
    ],
    (f, x, weights, table, runs, out, stride, aside, sums) => {
      const prefix = f.locals("v128", 4);
      const extra = mode === "plain" ? [] : f.locals("v128", 4);
      const value = f.locals("v128", mode === "plain" ? 1 : 4);
      const [count, last, factor] = f.locals("i32", 3);
      const z = f.local("v128");
      for (const [k, e] of extra.entries()) e.set(mode === "sum" ? v128.load(aside, 16 * k) : f32x4.const(0));
      f.if(i32.le(runs, 0), () => f.return());
      f.doWhile(() => {
        count.set(i32.load(table));
        last.set(x.plus(i32.load(table, 4)));
        for (let k = 0; k < 4; k++) prefix[k].set(v128.load(weights, 16 * k));
        for (let i = 0; i < degree - 1; i++) {
          factor.set(x.plus(i32.load(table, 8 + 4 * i)));
          for (let k = 0; k < 4; k++) prefix[k].set(f32x4.mul(prefix[k], v128.load(factor, 16 * k)));
        }
        f.doWhile(() => {
          if (mode === "dot") z.set(v128.load32Splat(sums));
          for (let k = 0; k < 4; k++) {
            const v = value[k % value.length];
            v.set(f32x4.mul(prefix[k], v128.load(last, 16 * k)));
            f.store("v128", out, v, 16 * k);
            if (mode === "dot") extra[k].set(m.madd(v, z, extra[k]));
          }
          if (mode === "sum") {
            z.set(f32x4.mul(value[0], extra[0]));
            for (let k = 1; k < 4; k++) z.set(m.madd(value[k], extra[k], z));
            f.store("v128", sums, f32x4.add(z, v128.load(sums)));
            sums.add(16);
          }
          if (mode === "dot") sums.add(4);
          last.add(LINE);
          out.add(stride);
          count.set(count.minus(1));
        }, count);
        table.add(runBytes);
        runs.set(runs.minus(1));
      }, runs);
      if (mode !== "dot") return;
      for (const [k, e] of extra.entries()) f.store("v128", aside, f32x4.add(e, v128.load(aside, 16 * k)), 16 * k);
    },
  );
}

/**
 * The chain rule of `expand`: dx[d][16] += Σ_f lines[f][16] · ∂φ_f/∂x. `lines` are one line a feature, LINE apart.
 */
export function writeExpandGradient(m: ModuleBuilder, degree: number): FunctionHandle {
  const runBytes = 4 * (degree + 1);
  return m.function(
    "expand-gradient",
    [
      ["x", "i32"],
      ["table", "i32"],
      ["runs", "i32"],
      ["lines", "i32"],
      ["dx", "i32"],
    ],
    (f, x, table, runs, lines, dx) => {
      const prefix = f.locals("v128", 4);
      const dPrefix = f.locals("v128", 4);
      const [count, offset, last, dLast] = f.locals("i32", 4);
      const [g, product] = f.locals("v128", 2);
      const factors = f.locals("i32", Math.max(0, degree - 1));
      const addTo = (offsetK: number, pointer: typeof dx, value: ReturnType<typeof f32x4.mul>) =>
        f.store("v128", pointer, f32x4.add(v128.load(pointer, offsetK), value), offsetK);
      f.if(i32.le(runs, 0), () => f.return());
      f.doWhile(() => {
        count.set(i32.load(table));
        offset.set(i32.load(table, 4));
        last.set(x.plus(offset));
        dLast.set(dx.plus(offset));
        for (let i = 0; i < degree - 1; i++) factors[i].set(i32.load(table, 8 + 4 * i));
        for (let k = 0; k < 4; k++) {
          dPrefix[k].set(f32x4.const(0));
          if (degree === 1) continue;
          prefix[k].set(v128.load(x.plus(factors[0]), 16 * k));
          for (let i = 1; i < degree - 1; i++) {
            prefix[k].set(f32x4.mul(prefix[k], v128.load(x.plus(factors[i]), 16 * k)));
          }
        }
        f.doWhile(() => {
          for (let k = 0; k < 4; k++) {
            g.set(v128.load(lines, 16 * k));
            if (degree === 1) {
              addTo(16 * k, dLast, g);
              continue;
            }
            dPrefix[k].set(m.madd(g, v128.load(last, 16 * k), dPrefix[k]));
            f.store("v128", dLast, m.madd(g, prefix[k], v128.load(dLast, 16 * k)), 16 * k);
          }
          lines.add(LINE);
          last.add(LINE);
          dLast.add(LINE);
          count.set(count.minus(1));
        }, count);
        // d(prefix) goes on to each of its factors, times the product of the others.
        for (let i = 0; i < degree - 1; i++) {
          for (let k = 0; k < 4; k++) {
            product.set(dPrefix[k]);
            for (let other = 0; other < degree - 1; other++) {
              if (other !== i) product.set(f32x4.mul(product, v128.load(x.plus(factors[other]), 16 * k)));
            }
            addTo(16 * k, f.local("i32", dx.plus(factors[i])), product);
          }
        }
        table.add(runBytes);
        runs.set(runs.minus(1));
      }, runs);
    },
  );
}
