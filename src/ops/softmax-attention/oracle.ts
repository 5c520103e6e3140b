import { fromOracleValues, valuesOf } from "../../devices/oracle.js";
import type { SoftmaxBackward, SoftmaxForward, SoftmaxPlan } from "./contract.js";

/** Calls `row` for each query with its scores against tokens 0 … i, exponentiated and divided by their sum. */
function eachRow(
  plan: SoftmaxPlan,
  q: Float64Array,
  k: Float64Array,
  row: (query: number, keyAt: (j: number) => number, weights: Float64Array) => void,
): void {
  const { batch, time: T, queryHeads: Hq, heads: H, headDim: d, scale } = plan;
  for (let b = 0; b < batch; b++) {
    for (let m = 0; m < Hq; m++) {
      const h = Math.floor(m / (Hq / H));
      const keyAt = (j: number) => (b * T + j) * H + h;
      for (let i = 0; i < T; i++) {
        const query = (b * T + i) * Hq + m;
        const weights = new Float64Array(i + 1);
        for (let j = 0; j <= i; j++) {
          for (let n = 0; n < d; n++) weights[j] += scale * q[query * d + n] * k[keyAt(j) * d + n];
        }
        const largest = weights.reduce((a, b) => Math.max(a, b));
        let sum = 0;
        for (let j = 0; j <= i; j++) {
          weights[j] = Math.exp(weights[j] - largest);
          sum += weights[j];
        }
        for (let j = 0; j <= i; j++) weights[j] /= sum;
        row(query, keyAt, weights);
      }
    }
  }
}

export const softmaxOracle: SoftmaxForward = (plan, { q, k, v }) => {
  const { batch, time, queryHeads, valueDim: e } = plan;
  const values = valuesOf(v);
  const out = new Float64Array(batch * time * queryHeads * e);
  eachRow(plan, valuesOf(q), valuesOf(k), (query, keyAt, weights) => {
    for (const [j, w] of weights.entries()) {
      for (let n = 0; n < e; n++) out[query * e + n] += w * values[keyAt(j) * e + n];
    }
  });
  return { output: fromOracleValues(q, [batch, time, queryHeads, e], out), saved: [] };
};

/** d(score_ij) = w_ij (dOut_i·v_j − Σ_l w_il dOut_i·v_l). */
export const softmaxOracleBackward: SoftmaxBackward = (plan, { q, k, v }, _output, _saved, upstream) => {
  const { headDim: d, valueDim: e, scale } = plan;
  const [qs, ks, vs, dOut] = [q, k, v, upstream].map(valuesOf);
  const dQ = new Float64Array(qs.length);
  const dK = new Float64Array(ks.length);
  const dV = new Float64Array(vs.length);
  eachRow(plan, qs, ks, (query, keyAt, weights) => {
    const dW = new Float64Array(weights.length);
    let mean = 0;
    for (const [j, w] of weights.entries()) {
      const key = keyAt(j);
      for (let n = 0; n < e; n++) {
        dW[j] += dOut[query * e + n] * vs[key * e + n];
        dV[key * e + n] += w * dOut[query * e + n];
      }
      mean += w * dW[j];
    }
    for (const [j, w] of weights.entries()) {
      const key = keyAt(j);
      const dScore = w * (dW[j] - mean) * scale;
      for (let n = 0; n < d; n++) {
        dQ[query * d + n] += dScore * ks[key * d + n];
        dK[key * d + n] += dScore * qs[query * d + n];
      }
    }
  });
  return {
    q: fromOracleValues(q, q.shape, dQ),
    k: fromOracleValues(k, k.shape, dK),
    v: fromOracleValues(v, v.shape, dV),
  };
};
