import {
  type Expr,
  type FunctionBuilder,
  type FunctionHandle,
  f32x4,
  i32x4,
  type Local,
  type ModuleBuilder,
  v128,
} from "../../../devices/wasm/emitter.js";
import { GROUP, LINE } from "../../../devices/wasm/tiles.js";

/**
 * Scores become weights, w = 2^(unit · (s − maximum)) with unit = |scale| · log₂e. Scores are bare dot products: the unit
 * multiplies differences, so that scores of hundreds lose nothing. Lines are [keys][16 queries], as
 * `writeGroupTimesGroup` leaves them.
 */

/** No score is lower, but −∞: a maximum that starts here is never −∞, and −∞ minus it is. */
export const LOWEST = -(2 - 2 ** -23) * 2 ** 127;

/** (2^r − 1) / r for |r| ≤ ½: least relative error of 2^r, 2e-9. */
const EXP2 = [0.6931472029, 0.2402264791, 0.05550332471, 0.009618437358, 0.001339887441, 0.0001535336192];

/** 1.5 · 2^23: added to a small number, it leaves the nearest integer in the low bits. */
const ROUND = 3 * 2 ** 22;

/**
 * 2^x for x ≤ 0 to about 1 unit in the last place; 0 from −126.5 down, −∞ too. NaN stays. `x` is overwritten.
 */
function exp2Below(f: FunctionBuilder, x: Local, n: Local): Expr {
  // The first operand of pmax wins where it is NaN.
  x.set(f32x4.pmax(x, f32x4.const(-127)));
  n.set(f32x4.add(x, f32x4.const(ROUND)));
  x.set(f32x4.sub(x, f32x4.sub(n, f32x4.const(ROUND))));
  const slope = EXP2.slice(0, -1).reduceRight(
    (sum, c) => f.module.madd(sum, x, f32x4.const(c)),
    f32x4.const(EXP2.at(-1)!),
  );
  const fraction = f.module.madd(slope, x, f32x4.const(1));
  // The exponent's bits from the integer's; −127 becomes 0.
  return f32x4.mul(fraction, i32x4.add(i32x4.shl(n, 23), i32x4.const(0x3f800000)));
}

/** All bits in lanes 4k … 4k + 3 (queries of a group) that are not before token `j` of the group. */
function notBefore(k: number, j: Expr): Expr {
  return i32x4.ge(i32x4.const(4 * k, 4 * k + 1, 4 * k + 2, 4 * k + 3), i32x4.splat(j));
}

/** Scores of a group against itself: −∞ where the key is later, whatever the score was. */
export function writeMaskLater(m: ModuleBuilder): FunctionHandle {
  return m.function("mask-later", [["lines", "i32"]], (f, lines) => {
    f.for(0, GROUP, 1, (j) => {
      for (let k = 0; k < 4; k++) {
        const s = v128.load(lines, 16 * k);
        const masked = v128.bitselect(s, f32x4.const(Number.NEGATIVE_INFINITY), notBefore(k, j));
        f.store("v128", lines, masked, 16 * k);
      }
      lines.add(LINE);
    });
  });
}

/**
 * One step of the streaming softmax, for `rows` keys and 16 queries: raises the running maxima `top[16]`, turns scores
 * into weights in place, sums[16] = sums · factor + Σ weights; factors[16] = 2^(unit · (old − new maximum)) is what the
 * rows accumulated so far must be multiplied by. Returns whether any of them is not 1.
 */
export function writeSoftmaxStep(m: ModuleBuilder): FunctionHandle {
  return m.function(
    "softmax-step",
    [
      ["lines", "i32"],
      ["rows", "i32"],
      ["top", "i32"],
      ["sums", "i32"],
      ["factors", "i32"],
      ["unit", "f32"],
    ],
    (f, lines, rows, top, sums, factors, unit) => {
      const largest = f.locals("v128", 4);
      const total = f.locals("v128", 4);
      const [x, n, w, changed] = f.locals("v128", 4);
      const c = f.local("v128", f32x4.splat(unit));
      const [line, left] = f.locals("i32", 2);
      for (let k = 0; k < 4; k++) largest[k].set(v128.load(top, 16 * k));
      line.set(lines);
      left.set(rows);
      // A NaN never raises a maximum; its weight is NaN and makes the sum so.
      f.doWhile(() => {
        for (let k = 0; k < 4; k++) largest[k].set(f32x4.pmax(largest[k], v128.load(line, 16 * k)));
        line.add(LINE);
        left.set(left.minus(1));
      }, left);
      changed.set(i32x4.const(0));
      for (let k = 0; k < 4; k++) {
        x.set(f32x4.mul(c, f32x4.sub(v128.load(top, 16 * k), largest[k])));
        w.set(exp2Below(f, x, n));
        changed.set(v128.or(changed, f32x4.ne(w, f32x4.const(1))));
        total[k].set(f32x4.mul(v128.load(sums, 16 * k), w));
        f.store("v128", factors, w, 16 * k);
        f.store("v128", top, largest[k], 16 * k);
      }
      f.doWhile(() => {
        for (let k = 0; k < 4; k++) {
          x.set(f32x4.mul(c, f32x4.sub(v128.load(lines, 16 * k), largest[k])));
          w.set(exp2Below(f, x, n));
          f.store("v128", lines, w, 16 * k);
          total[k].set(f32x4.add(total[k], w));
        }
        lines.add(LINE);
        rows.set(rows.minus(1));
      }, rows);
      for (let k = 0; k < 4; k++) f.store("v128", sums, total[k], 16 * k);
      f.return(v128.anyTrue(changed));
    },
    { result: "i32" },
  );
}

/**
 * The backward of the weights of a group of keys and a group of queries, in place. `saved` holds the
 * forward's maxima and, a line further, reciprocals of sums:
 *     w = 2^(unit · (s − maximum)) / sum      dS = w · (dW − mean)      mean = Σ_j w dW = dOut · out, a number a query
 * Scores become w and what arrived for the weights becomes dS. `diagonal`: zero where the key is later.
 */
export function writeWeightsGradient(m: ModuleBuilder, lineStride: number, diagonal: boolean): FunctionHandle {
  return m.function(
    diagonal ? "weights-gradient-diagonal" : "weights-gradient",
    [
      ["scores", "i32"],
      ["dWeights", "i32"],
      ["saved", "i32"],
      ["mean", "i32"],
      ["unit", "f32"],
    ],
    (f, scores, dWeights, saved, mean, unit) => {
      const c = f.local("v128", f32x4.splat(unit));
      const top = f.locals("v128", 4);
      const reciprocal = f.locals("v128", 4);
      const means = f.locals("v128", 4);
      const [x, n, w] = f.locals("v128", 3);
      for (let k = 0; k < 4; k++) {
        top[k].set(v128.load(saved, 16 * k));
        reciprocal[k].set(v128.load(saved, LINE + 16 * k));
        means[k].set(v128.load(mean, 16 * k));
      }
      f.for(0, GROUP, 1, (j) => {
        for (let k = 0; k < 4; k++) {
          const keep = (value: Expr) => (diagonal ? v128.and(value, notBefore(k, j)) : value);
          x.set(f32x4.mul(c, f32x4.sub(v128.load(scores, 16 * k), top[k])));
          w.set(f32x4.mul(exp2Below(f, x, n), reciprocal[k]));
          f.store("v128", scores, keep(w), 16 * k);
          const dS = f32x4.mul(w, f32x4.sub(v128.load(dWeights, 16 * k), means[k]));
          f.store("v128", dWeights, keep(dS), 16 * k);
        }
        scores.add(lineStride);
        dWeights.add(lineStride);
      });
    },
  );
}
