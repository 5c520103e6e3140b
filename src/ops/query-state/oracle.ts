import { fromOracleValues, valuesOf } from "../../devices/oracle.js";
import { monomials } from "../../feature-map.js";
import type { UnnormalisedValues } from "../chunk-attention/oracle.js";
import type { StateValues } from "../chunk-state/oracle.js";
import { expand, expandGradient } from "../feature-map/oracle.js";
import type { SequencePlan } from "../power-attention/contract.js";
import { chunkRange, decayFromStart, gateAt, gatesOf } from "../power-attention/oracle-gates.js";
import type { QueryStateBackward, QueryStateForward } from "./contract.js";

/** Calls `visit` for each query row with its state's first feature, scale^p · exp(G_i), and its place among the gates. */
function eachQuery(
  plan: SequencePlan,
  gates: Float64Array | undefined,
  visit: (queryRow: number, state: number, factor: number, gate: number) => void,
): void {
  const { batch, time: T, queryHeads: Hq, heads: H, chunks: N, expandedDim: D, scale, degree } = plan;
  for (let b = 0; b < batch; b++) {
    for (let m = 0; m < Hq; m++) {
      const h = Math.floor(m / (Hq / H));
      for (let c = 0; c < N; c++) {
        const range = chunkRange(plan, c);
        const decay = decayFromStart(plan, gates, b, h, range);
        for (let i = range[0]; i < range[1]; i++) {
          const factor = scale ** degree * decay[i - range[0]];
          visit((b * T + i) * Hq + m, ((b * N + c) * H + h) * D, factor, gateAt(plan, b, i, h));
        }
      }
    }
  }
}

export function queryStateValues(
  plan: SequencePlan,
  q: Float64Array,
  states: StateValues,
  logG?: Float64Array,
): UnnormalisedValues {
  const { batch, time, queryHeads, headDim: d, valueDim: e, expandedDim: D } = plan;
  const table = monomials(d, plan.degree);
  const phi = new Float64Array(D);
  const sum = new Float64Array(batch * time * queryHeads);
  const output = new Float64Array(sum.length * e);
  eachQuery(plan, gatesOf(logG), (i, at, factor) => {
    expand(table, q, i * d, phi);
    for (let m = 0; m < D; m++) {
      const w = factor * phi[m];
      sum[i] += w * states.z[at + m];
      for (let n = 0; n < e; n++) output[i * e + n] += w * states.s[(at + m) * e + n];
    }
  });
  return { output, sum };
}

export function queryStateGradients(
  plan: SequencePlan,
  q: Float64Array,
  states: StateValues,
  logG: Float64Array | undefined,
  dOutput: Float64Array | undefined,
  dSum: Float64Array | undefined,
): { q: Float64Array; states: StateValues; logG: Float64Array } {
  const { batch, time: T, heads: H, headDim: d, valueDim: e, expandedDim: D } = plan;
  const table = monomials(d, plan.degree);
  const phi = new Float64Array(D);
  const dPhi = new Float64Array(D);
  const dQ = new Float64Array(q.length);
  const dS = new Float64Array(states.s.length);
  const dZ = new Float64Array(states.z.length);
  const dLogG = new Float64Array(batch * T * H);
  eachQuery(plan, gatesOf(logG), (i, at, factor, gate) => {
    expand(table, q, i * d, phi);
    let own = 0; // exp(G_i) · dL/d exp(G_i)
    for (let m = 0; m < D; m++) {
      let g = 0;
      if (dSum) {
        g += dSum[i] * states.z[at + m];
        dZ[at + m] += factor * phi[m] * dSum[i];
      }
      if (dOutput) {
        for (let n = 0; n < e; n++) {
          g += dOutput[i * e + n] * states.s[(at + m) * e + n];
          dS[(at + m) * e + n] += factor * phi[m] * dOutput[i * e + n];
        }
      }
      dPhi[m] = factor * g;
      own += factor * g * phi[m];
    }
    expandGradient(table, q, i * d, dPhi, dQ);
    dLogG[gate] += own;
  });
  // Gate t decays what every query from t to the chunk's end reads.
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < H; h++) {
      for (let c = 0; c < plan.chunks; c++) {
        const [start, end] = chunkRange(plan, c);
        for (let t = end - 2; t >= start; t--) dLogG[gateAt(plan, b, t, h)] += dLogG[gateAt(plan, b, t + 1, h)];
      }
    }
  }
  return { q: dQ, states: { s: dS, z: dZ }, logG: dLogG };
}

export const queryStateOracle: QueryStateForward = (plan, { q, states, logG }) => {
  const { batch, time, queryHeads, valueDim } = plan;
  const values = { s: valuesOf(states.s), z: valuesOf(states.z) };
  const { output, sum } = queryStateValues(plan, valuesOf(q), values, logG && valuesOf(logG));
  const like = { device: q.device, dtype: "f32" } as const;
  return {
    output: fromOracleValues(like, [batch, time, queryHeads, valueDim], output),
    sum: fromOracleValues(like, [batch, time, queryHeads], sum),
  };
};

export const queryStateOracleBackward: QueryStateBackward = (plan, { q, states, logG }, upstream) => {
  const grads = queryStateGradients(
    plan,
    valuesOf(q),
    { s: valuesOf(states.s), z: valuesOf(states.z) },
    logG && valuesOf(logG),
    upstream.output && valuesOf(upstream.output),
    upstream.sum && valuesOf(upstream.sum),
  );
  return {
    q: fromOracleValues(q, q.shape, grads.q),
    states: {
      s: fromOracleValues(states.s, states.s.shape, grads.states.s),
      z: fromOracleValues(states.z, states.z.shape, grads.states.z),
    },
    logG: logG && fromOracleValues(logG, logG.shape, grads.logG),
  };
};
