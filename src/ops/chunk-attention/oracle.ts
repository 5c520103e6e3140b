import { fromOracleValues, valuesOf } from "../../devices/oracle.js";
import type { SequencePlan } from "../power-attention/contract.js";
import { chunkRange, gateAt, gatesOf } from "../power-attention/oracle-gates.js";
import type { ChunkAttentionBackward, ChunkAttentionForward } from "./contract.js";

export interface UnnormalisedValues {
  output: Float64Array;
  sum: Float64Array;
}

/** Calls `pair` for each query row and each key row it sees, from the query's own token back to the chunk's start. */
function eachPair(
  plan: SequencePlan,
  gates: Float64Array | undefined,
  pair: (queryRow: number, keyRow: number, decay: number) => void,
): void {
  const { batch, time: T, queryHeads: Hq, heads: H, chunkSize } = plan;
  for (let b = 0; b < batch; b++) {
    for (let m = 0; m < Hq; m++) {
      const h = Math.floor(m / (Hq / H));
      for (let i = 0; i < T; i++) {
        const start = i - (i % chunkSize);
        let decay = 1;
        for (let j = i; j >= start; j--) {
          pair((b * T + i) * Hq + m, (b * T + j) * H + h, decay);
          if (gates) decay *= gates[gateAt(plan, b, j, h)];
        }
      }
    }
  }
}

function dot(a: Float64Array, atA: number, b: Float64Array, atB: number, length: number): number {
  let sum = 0;
  for (let n = 0; n < length; n++) sum += a[atA + n] * b[atB + n];
  return sum;
}

export function chunkAttentionValues(
  plan: SequencePlan,
  q: Float64Array,
  k: Float64Array,
  v: Float64Array,
  logG?: Float64Array,
): UnnormalisedValues {
  const { batch, time, queryHeads, headDim: d, valueDim: e, degree, scale } = plan;
  const sum = new Float64Array(batch * time * queryHeads);
  const output = new Float64Array(sum.length * e);
  eachPair(plan, gatesOf(logG), (i, j, decay) => {
    const w = (scale * dot(q, i * d, k, j * d, d)) ** degree * decay;
    sum[i] += w;
    for (let n = 0; n < e; n++) output[i * e + n] += w * v[j * e + n];
  });
  return { output, sum };
}

export function chunkAttentionGradients(
  plan: SequencePlan,
  q: Float64Array,
  k: Float64Array,
  v: Float64Array,
  logG: Float64Array | undefined,
  dOutput: Float64Array | undefined,
  dSum: Float64Array | undefined,
): { q: Float64Array; k: Float64Array; v: Float64Array; logG: Float64Array } {
  const { batch, time: T, queryHeads: Hq, heads: H, headDim: d, valueDim: e, degree, scale } = plan;
  const dQ = new Float64Array(q.length);
  const dK = new Float64Array(k.length);
  const dV = new Float64Array(v.length);
  // Σ w · dL/dw of a token as a query, less the same as a key: gate t decays the pairs with j < t ≤ i.
  const balance = new Float64Array(batch * T * H);
  eachPair(plan, gatesOf(logG), (i, j, decay) => {
    const score = scale * dot(q, i * d, k, j * d, d);
    const w = score ** degree * decay;
    const dW = (dSum ? dSum[i] : 0) + (dOutput ? dot(dOutput, i * e, v, j * e, e) : 0);
    const dDot = dW * decay * degree * score ** (degree - 1) * scale;
    for (let n = 0; n < d; n++) {
      dQ[i * d + n] += dDot * k[j * d + n];
      dK[j * d + n] += dDot * q[i * d + n];
    }
    if (dOutput) for (let n = 0; n < e; n++) dV[j * e + n] += w * dOutput[i * e + n];
    const token = Math.floor(i / Hq) * H + (j % H);
    balance[token] += w * dW;
    balance[j] -= w * dW;
  });
  const dLogG = new Float64Array(balance.length);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < H; h++) {
      for (let c = 0; c < plan.chunks; c++) {
        const [start, end] = chunkRange(plan, c);
        // The balance of a chunk adds up to 0, so what is left of t is minus what is right of it.
        let before = 0;
        for (let t = start; t < end; t++) {
          dLogG[gateAt(plan, b, t, h)] = -before;
          before += balance[gateAt(plan, b, t, h)];
        }
      }
    }
  }
  return { q: dQ, k: dK, v: dV, logG: dLogG };
}

export const chunkAttentionOracle: ChunkAttentionForward = (plan, { q, k, v, logG }) => {
  const { batch, time, queryHeads, valueDim } = plan;
  const { output, sum } = chunkAttentionValues(plan, valuesOf(q), valuesOf(k), valuesOf(v), logG && valuesOf(logG));
  const like = { device: q.device, dtype: "f32" } as const;
  return {
    output: fromOracleValues(like, [batch, time, queryHeads, valueDim], output),
    sum: fromOracleValues(like, [batch, time, queryHeads], sum),
  };
};

export const chunkAttentionOracleBackward: ChunkAttentionBackward = (plan, { q, k, v, logG }, upstream) => {
  const grads = chunkAttentionGradients(
    plan,
    valuesOf(q),
    valuesOf(k),
    valuesOf(v),
    logG && valuesOf(logG),
    upstream.output && valuesOf(upstream.output),
    upstream.sum && valuesOf(upstream.sum),
  );
  return {
    q: fromOracleValues(q, q.shape, grads.q),
    k: fromOracleValues(k, k.shape, grads.k),
    v: fromOracleValues(v, v.shape, grads.v),
    logG: logG && fromOracleValues(logG, logG.shape, grads.logG),
  };
};
