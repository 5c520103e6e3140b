import { LAYERNORM_EPSILON, type Normalize } from "./contract.js";

/** out = normalize(y), row by row of `e`; `sum` holds Σ_j w of each row. */
export function normalise(kind: Normalize, e: number, y: Float64Array, sum: Float64Array): Float64Array {
  const out = Float64Array.from(y);
  if (kind === "none") return out;
  for (let row = 0; row < sum.length; row++) {
    const values = out.subarray(row * e, (row + 1) * e);
    if (kind === "sum") {
      for (let n = 0; n < e; n++) values[n] = sum[row] === 0 ? 0 : values[n] / sum[row];
    } else {
      const { centred, deviation } = centre(values);
      for (let n = 0; n < e; n++) values[n] = centred[n] / (deviation + LAYERNORM_EPSILON);
    }
  }
  return out;
}

/** The gradients of y and of the sum. */
export function normaliseGradient(
  kind: Normalize,
  e: number,
  y: Float64Array,
  sum: Float64Array,
  dOut: Float64Array,
): { y: Float64Array; sum: Float64Array } {
  const dY = new Float64Array(y.length);
  const dSum = new Float64Array(sum.length);
  if (kind === "none") return { y: Float64Array.from(dOut), sum: dSum };
  for (let row = 0; row < sum.length; row++) {
    const at = row * e;
    if (kind === "sum") {
      if (sum[row] === 0) continue;
      for (let n = 0; n < e; n++) {
        dY[at + n] = dOut[at + n] / sum[row];
        dSum[row] -= (dOut[at + n] * y[at + n]) / sum[row] / sum[row];
      }
    } else {
      // out = c / (σ + ε), c = y − mean, ∂σ/∂c = c / (e σ); then the mean of dc goes out.
      const { centred, deviation } = centre(y.subarray(at, at + e));
      const divisor = deviation + LAYERNORM_EPSILON;
      let along = 0;
      for (let n = 0; n < e; n++) along += dOut[at + n] * centred[n];
      const pull = deviation === 0 ? 0 : along / (divisor * divisor * e * deviation);
      let mean = 0;
      for (let n = 0; n < e; n++) {
        dY[at + n] = dOut[at + n] / divisor - pull * centred[n];
        mean += dY[at + n] / e;
      }
      for (let n = 0; n < e; n++) dY[at + n] -= mean;
    }
  }
  return { y: dY, sum: dSum };
}

function centre(values: Float64Array): { centred: Float64Array; deviation: number } {
  let mean = 0;
  for (const value of values) mean += value / values.length;
  const centred = values.map((value) => value - mean);
  let variance = 0;
  for (const c of centred) variance += (c * c) / values.length;
  return { centred, deviation: Math.sqrt(variance) };
}
