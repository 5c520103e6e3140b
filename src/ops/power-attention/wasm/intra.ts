import {
  type Expr,
  type FunctionBuilder,
  type FunctionHandle,
  f32,
  f32x4,
  f64,
  i32,
  type Local,
  type ModuleBuilder,
  v128,
} from "../../../devices/wasm/emitter.js";
import { GROUP, LINE, PANEL } from "../../../devices/wasm/tiles.js";

/**
 * Scores of earlier keys to weights, in place: w[j][t] = s[j][t]^p · decay[j] · inGroup[t], for `rows` lines of 16
 * queries; sums[t] += Σ_j w[j][t].
 */
export function writeWeigh(m: ModuleBuilder, degree: number): FunctionHandle {
  return m.function(
    "weigh",
    [
      ["lines", "i32"],
      ["rows", "i32"],
      ["decay", "i32"],
      ["inGroup", "i32"],
      ["sums", "i32"],
    ],
    (f, lines, rows, decay, inGroup, sums) => {
      const acc = f.locals("v128", 4);
      const by = f.locals("v128", 4);
      const [d, w] = f.locals("v128", 2);
      for (let k = 0; k < 4; k++) {
        acc[k].set(v128.load(sums, 16 * k));
        by[k].set(v128.load(inGroup, 16 * k));
      }
      f.for(0, rows, 1, () => {
        d.set(v128.load32Splat(decay));
        for (let k = 0; k < 4; k++) {
          const s = v128.load(lines, 16 * k);
          w.set(f32x4.mul(f32x4.mul(power(f, s, degree), by[k]), d));
          f.store("v128", lines, w, 16 * k);
          acc[k].set(f32x4.add(acc[k], w));
        }
        lines.add(LINE);
        decay.add(4);
      });
      for (let k = 0; k < 4; k++) f.store("v128", sums, acc[k], 16 * k);
    },
  );
}

/**
 * The decays within a group of 16: out[j][t] = ∏_{j<l≤t} g_l for t ≥ j and 0 before; and `mask`, all bits where t ≥ j.
 */
export function writeDiagonalDecay(m: ModuleBuilder): FunctionHandle {
  return m.function(
    "diagonal-decay",
    [
      ["g", "i32"],
      ["out", "i32"],
      ["mask", "i32"],
    ],
    (f, g, out, mask) => {
      const product = f.local("f64");
      f.fill(out, 0, GROUP * LINE);
      f.fill(mask, 0, GROUP * LINE);
      f.for(0, GROUP, 1, (j) => {
        product.set(1);
        f.for(j, GROUP, 1, (t) => {
          f.if(i32.gt(t, j), () => product.set(f64.mul(product, f64.load(g.plus(t.times(8))))));
          const at = j.times(LINE).plus(t.times(4));
          f.store("f32", out.plus(at), f32.fromF64(product));
          f.store("i32", mask.plus(at), -1);
        });
      });
    },
  );
}

/** Scores of a group against itself to weights, in place: zero where the key is later, whatever the score was. */
export function writeWeighDiagonal(m: ModuleBuilder, degree: number): FunctionHandle {
  return m.function(
    "weigh-diagonal",
    [
      ["lines", "i32"],
      ["decay", "i32"],
      ["mask", "i32"],
      ["sums", "i32"],
    ],
    (f, lines, decay, mask, sums) => {
      const acc = f.locals("v128", 4);
      const w = f.local("v128");
      for (let k = 0; k < 4; k++) acc[k].set(v128.load(sums, 16 * k));
      f.for(0, GROUP, 1, () => {
        for (let k = 0; k < 4; k++) {
          const s = v128.load(lines, 16 * k);
          w.set(v128.and(f32x4.mul(power(f, s, degree), v128.load(decay, 16 * k)), v128.load(mask, 16 * k)));
          f.store("v128", lines, w, 16 * k);
          acc[k].set(f32x4.add(acc[k], w));
        }
        lines.add(LINE);
        decay.add(LINE);
        mask.add(LINE);
      });
      for (let k = 0; k < 4; k++) f.store("v128", sums, acc[k], 16 * k);
    },
  );
}

/**
 * y[t][columns] += Σ_{j≤t} w[j][t] · v[j] within a group; later values are never touched, so that a NaN among them
 * stays in its future.
 */
export function writeDiagonalTimesPanels(m: ModuleBuilder, columns: number, lineStride = LINE): FunctionHandle {
  return m.function(
    "diagonal-times-panels",
    [
      ["lines", "i32"],
      ["panels", "i32"],
      ["panelStride", "i32"],
      ["y", "i32"],
    ],
    (f, lines, panels, panelStride, y) => {
      const [a, b] = f.locals("v128", 2);
      const w = f.local("v128");
      const [v, line, out]: Local[] = f.locals("i32", 3);
      f.for(0, GROUP, 1, (t) => {
        out.set(y);
        const panel = f.local("i32", panels);
        f.for(0, columns / PANEL, 1, () => {
          a.set(v128.load(out));
          b.set(v128.load(out, 16));
          v.set(panel);
          line.set(lines);
          f.for(0, t.plus(1), 1, () => {
            w.set(v128.load32Splat(line));
            a.set(m.madd(w, v128.load(v), a));
            b.set(m.madd(w, v128.load(v, 16), b));
            v.add(4 * PANEL);
            line.add(lineStride);
          });
          f.store("v128", out, a);
          f.store("v128", out, b, 16);
          out.add(4 * PANEL);
          panel.add(panelStride);
        });
        lines.add(4);
        y.add(4 * columns);
      });
    },
  );
}

/** Bytes between rows of the backward's blocks of weights: four groups of queries side by side. */
export const BLOCK_ROW = 4 * LINE;

/**
 * The backward of `weigh` for one group of queries and `rows` earlier keys, in place: scores become weights w, and
 * what arrived for the weights (dw + dSum[t]) becomes what goes to the scores, ds = p · s^(p−1) · decay · (dw + dSum).
 */
export function writeWeighGradient(m: ModuleBuilder, degree: number): FunctionHandle {
  return m.function(
    "weigh-gradient",
    [
      ["scores", "i32"],
      ["dWeights", "i32"],
      ["rows", "i32"],
      ["decay", "i32"],
      ["inGroup", "i32"],
      ["dSum", "i32"],
    ],
    (f, scores, dWeights, rows, decay, inGroup, dSum) => {
      const by = f.locals("v128", 4);
      const extra = f.locals("v128", 4);
      const [d, s, lower] = f.locals("v128", 3);
      for (let k = 0; k < 4; k++) {
        by[k].set(v128.load(inGroup, 16 * k));
        extra[k].set(v128.load(dSum, 16 * k));
      }
      f.for(0, rows, 1, () => {
        d.set(v128.load32Splat(decay));
        for (let k = 0; k < 4; k++) {
          s.set(v128.load(scores, 16 * k));
          lower.set(f32x4.mul(f32x4.mul(power(f, s, degree - 1), by[k]), d));
          f.store("v128", scores, f32x4.mul(s, lower), 16 * k);
          const arrived = f32x4.add(v128.load(dWeights, 16 * k), extra[k]);
          f.store("v128", dWeights, f32x4.mul(f32x4.mul(lower, f32x4.const(degree)), arrived), 16 * k);
        }
        scores.add(BLOCK_ROW);
        dWeights.add(BLOCK_ROW);
        decay.add(4);
      });
    },
  );
}

/** The same for a group of queries against its own keys; zero where the key is later. */
export function writeWeighGradientDiagonal(m: ModuleBuilder, degree: number): FunctionHandle {
  return m.function(
    "weigh-gradient-diagonal",
    [
      ["scores", "i32"],
      ["dWeights", "i32"],
      ["decay", "i32"],
      ["mask", "i32"],
      ["dSum", "i32"],
    ],
    (f, scores, dWeights, decay, mask, dSum) => {
      const [s, lower, keep] = f.locals("v128", 3);
      f.for(0, GROUP, 1, () => {
        for (let k = 0; k < 4; k++) {
          s.set(v128.load(scores, 16 * k));
          keep.set(v128.load(mask, 16 * k));
          lower.set(f32x4.mul(power(f, s, degree - 1), v128.load(decay, 16 * k)));
          f.store("v128", scores, v128.and(keep, f32x4.mul(s, lower)), 16 * k);
          const arrived = f32x4.add(v128.load(dWeights, 16 * k), v128.load(dSum, 16 * k));
          const ds = f32x4.mul(f32x4.mul(lower, f32x4.const(degree)), arrived);
          f.store("v128", dWeights, v128.and(keep, ds), 16 * k);
        }
        scores.add(BLOCK_ROW);
        dWeights.add(BLOCK_ROW);
        decay.add(LINE);
        mask.add(LINE);
      });
    },
  );
}

/** x^n by repeated squaring, for a vector local. */
function power(f: FunctionBuilder, x: Expr, n: number): Expr {
  if (n === 0) return f32x4.const(1);
  if (n === 1) return x;
  const base = f.local("v128", x);
  if (n === 2) return f32x4.mul(base, base);
  const half = f.local("v128", power(f, base, Math.floor(n / 2)));
  const square = f32x4.mul(half, half);
  return n % 2 ? f32x4.mul(base, square) : square;
}
