import { type Expr, type FunctionBuilder, f32x4, i32x4, type Local, v128 } from "./emitter.js";

/**
 * exp, log and their relatives on four f32 lanes, to about 2 units in the last place, with the limits at ±∞, 0 and
 * NaN. Polynomials are Chebyshev fits of the functions named beside them, rounded to f32.
 */

const LN2_HIGH = 0.693115234375; // 12 bits: n·LN2_HIGH is exact
const LN2_LOW = Math.LN2 - LN2_HIGH;

const c = (value: number) => f32x4.const(value);

/** Σ coefficients[k]·x^k. */
function polynomial(f: FunctionBuilder, x: Local, coefficients: readonly number[]): Expr {
  return coefficients
    .slice(0, -1)
    .reduceRight((sum, coefficient) => f.module.madd(sum, x, c(coefficient)), c(coefficients.at(-1)!));
}

const kept = (f: FunctionBuilder, value: Expr) => f.local("v128", value);

/** e^x, gradual underflow included. */
export function exp4(f: FunctionBuilder, value: Expr): Expr {
  const m = f.module;
  // The first operand of pmin and pmax wins where it is NaN. e^-104 rounds to 0, e^89 to infinity.
  const x = kept(f, f32x4.pmax(f32x4.pmin(value, c(89)), c(-104)));
  const n = kept(f, f32x4.nearest(f32x4.mul(x, c(Math.LOG2E))));
  const r = kept(f, m.madd(n, c(-LN2_LOW), m.madd(n, c(-LN2_HIGH), x)));
  // (e^r − 1 − r) / r²
  const p = polynomial(f, r, [0.500000001, 0.16666577, 0.0416664649, 0.00836318012, 0.00139336504]);
  const mantissa = f32x4.add(m.madd(f32x4.mul(r, r), p, r), c(1));
  // 2^n in two factors, since n may be outside of what one exponent holds.
  const whole = kept(f, i32x4.fromF32(n));
  const half = kept(f, i32x4.shr(whole, 1));
  const power = (k: Expr) => i32x4.shl(i32x4.add(k, i32x4.const(127)), 23);
  return f32x4.mul(f32x4.mul(mantissa, power(half)), power(i32x4.sub(whole, half)));
}

/** The natural logarithm. */
export function log4(f: FunctionBuilder, value: Expr): Expr {
  const x = kept(f, value);
  const tiny = kept(f, f32x4.lt(x, c(2 ** -126)));
  const normal = kept(f, v128.bitselect(f32x4.mul(x, c(2 ** 23)), x, tiny));
  // x = 2^e · (1 + t) with 1 + t between √½ and √2.
  const e = kept(f, i32x4.shr(i32x4.sub(normal, i32x4.const(0x3f3504f3)), 23));
  const t = kept(f, f32x4.sub(i32x4.sub(normal, i32x4.shl(e, 23)), c(1)));
  const exponent = kept(f, f32x4.add(f32x4.fromI32(e), v128.and(tiny, c(-23))));
  // log(1 + t) = 2·atanh(s), s = t / (2 + t); written as t − (t²/2 − s·(t²/2 + s²·q)) so that t stays exact.
  const s = kept(f, f32x4.div(t, f32x4.add(t, c(2))));
  const z = kept(f, f32x4.mul(s, s));
  const square = kept(f, f32x4.mul(f32x4.mul(t, t), c(0.5)));
  const q = f32x4.mul(z, polynomial(f, z, [0.666666852, 0.399887398, 0.295814479]));
  const low = f.module.madd(exponent, c(LN2_LOW), f32x4.mul(s, f32x4.add(square, q)));
  const result = f.module.madd(exponent, c(LN2_HIGH), f32x4.sub(t, f32x4.sub(square, low)));
  // Outside of (0, ∞): 0 gives −∞, negative values and NaN give NaN, ∞ stays.
  const limit = v128.bitselect(c(Number.NEGATIVE_INFINITY), f32x4.div(f32x4.sub(x, x), c(0)), f32x4.eq(x, c(0)));
  const inside = v128.and(f32x4.gt(x, c(0)), f32x4.lt(x, c(Number.POSITIVE_INFINITY)));
  const outside = v128.bitselect(x, limit, f32x4.eq(x, c(Number.POSITIVE_INFINITY)));
  return v128.bitselect(result, outside, inside);
}

/** log(1 + u) for u in [0, 1], relative precision also for tiny u. */
export function log1pUnit4(f: FunctionBuilder, value: Expr): Expr {
  const u = kept(f, value);
  const s = kept(f, f32x4.div(u, f32x4.add(u, c(2))));
  const z = kept(f, f32x4.mul(s, s));
  // 2·atanh(s) = 2s + s³·q(s²)
  const q = polynomial(f, z, [0.666666673, 0.399997014, 0.285925834, 0.21703315, 0.232390505]);
  return f.module.madd(f32x4.mul(s, z), q, f32x4.add(s, s));
}

/** 1 / (1 + e^−x) with relative precision in both tails. */
export function sigmoid4(f: FunctionBuilder, value: Expr): Expr {
  const x = kept(f, value);
  const u = kept(f, exp4(f, f32x4.neg(f32x4.abs(x))));
  return f32x4.div(v128.bitselect(u, c(1), f32x4.lt(x, c(0))), f32x4.add(u, c(1)));
}

/** log(sigmoid(x)) = min(x, 0) − log(1 + e^−|x|). */
export function logSigmoid4(f: FunctionBuilder, value: Expr): Expr {
  const x = kept(f, value);
  const log = kept(f, log1pUnit4(f, exp4(f, f32x4.neg(f32x4.abs(x)))));
  return f32x4.sub(f32x4.min(x, c(0)), log);
}

export function tanh4(f: FunctionBuilder, value: Expr): Expr {
  const x = kept(f, value);
  const magnitude = kept(f, f32x4.abs(x));
  const z = kept(f, f32x4.mul(x, x));
  // (tanh(x) − x) / x³ for |x| < 0.625
  const p = polynomial(f, z, [-0.333333291, 0.133327824, -0.0538525171, 0.0210037351, -0.00610508542]);
  const small = kept(f, f.module.madd(f32x4.mul(x, z), p, x));
  const e = kept(f, exp4(f, f32x4.add(magnitude, magnitude)));
  const large = kept(f, f32x4.sub(c(1), f32x4.div(c(2), f32x4.add(e, c(1)))));
  const signed = v128.or(large, v128.and(x, i32x4.const(0x80000000 | 0)));
  return v128.bitselect(small, signed, f32x4.lt(magnitude, c(0.625)));
}
