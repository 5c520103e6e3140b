import { fromOracleValues, valuesOf } from "../../devices/oracle.js";
import { monomials } from "../../feature-map.js";
import { expand, expandGradient } from "../feature-map/oracle.js";
import type { SequencePlan } from "../power-attention/contract.js";
import { chunkRange, decayToEnd, gateAt, gatesOf } from "../power-attention/oracle-gates.js";
import type { ChunkStateBackward, ChunkStateForward } from "./contract.js";

export interface StateValues {
  s: Float64Array;
  z: Float64Array;
}

export function chunkStateValues(
  plan: SequencePlan,
  k: Float64Array,
  v: Float64Array,
  logG?: Float64Array,
): StateValues {
  const { batch, time: T, heads: H, headDim: d, valueDim: e, chunks: N, expandedDim: D } = plan;
  const table = monomials(d, plan.degree);
  const gates = gatesOf(logG);
  const s = new Float64Array(batch * N * H * D * e);
  const z = new Float64Array(batch * N * H * D);
  const phi = new Float64Array(D);
  for (let b = 0; b < batch; b++) {
    for (let c = 0; c < N; c++) {
      for (let h = 0; h < H; h++) {
        const range = chunkRange(plan, c);
        const decay = decayToEnd(plan, gates, b, h, range);
        const at = ((b * N + c) * H + h) * D;
        for (let j = range[0]; j < range[1]; j++) {
          const row = (b * T + j) * H + h;
          const w = decay[j - range[0]];
          expand(table, k, row * d, phi);
          for (let m = 0; m < D; m++) {
            z[at + m] += w * phi[m];
            for (let n = 0; n < e; n++) s[(at + m) * e + n] += w * phi[m] * v[row * e + n];
          }
        }
      }
    }
  }
  return { s, z };
}

export function chunkStateGradients(
  plan: SequencePlan,
  k: Float64Array,
  v: Float64Array,
  logG: Float64Array | undefined,
  dS: Float64Array | undefined,
  dZ: Float64Array | undefined,
): { k: Float64Array; v: Float64Array; logG: Float64Array } {
  const { batch, time: T, heads: H, headDim: d, valueDim: e, chunks: N, expandedDim: D } = plan;
  const table = monomials(d, plan.degree);
  const gates = gatesOf(logG);
  const dK = new Float64Array(k.length);
  const dV = new Float64Array(v.length);
  const dLogG = new Float64Array(batch * T * H);
  const phi = new Float64Array(D);
  const dPhi = new Float64Array(D);
  for (let b = 0; b < batch; b++) {
    for (let c = 0; c < N; c++) {
      for (let h = 0; h < H; h++) {
        const range = chunkRange(plan, c);
        const decay = decayToEnd(plan, gates, b, h, range);
        const at = ((b * N + c) * H + h) * D;
        let earlier = 0; // Σ over earlier tokens of w · dL/dw: each gate decays all tokens before it
        for (let j = range[0]; j < range[1]; j++) {
          const row = (b * T + j) * H + h;
          const w = decay[j - range[0]];
          expand(table, k, row * d, phi);
          let own = 0;
          for (let m = 0; m < D; m++) {
            let g = dZ ? dZ[at + m] : 0;
            if (dS) {
              for (let n = 0; n < e; n++) {
                g += dS[(at + m) * e + n] * v[row * e + n];
                dV[row * e + n] += w * phi[m] * dS[(at + m) * e + n];
              }
            }
            dPhi[m] = w * g;
            own += w * g * phi[m];
          }
          expandGradient(table, k, row * d, dPhi, dK);
          dLogG[gateAt(plan, b, j, h)] = earlier;
          earlier += own;
        }
      }
    }
  }
  return { k: dK, v: dV, logG: dLogG };
}

export const chunkStateOracle: ChunkStateForward = (plan, { k, v, logG }) => {
  const { batch, heads, valueDim, chunks, expandedDim } = plan;
  const { s, z } = chunkStateValues(plan, valuesOf(k), valuesOf(v), logG && valuesOf(logG));
  const like = { device: k.device, dtype: "f32" } as const;
  return {
    s: fromOracleValues(like, [batch, chunks, heads, expandedDim, valueDim], s),
    z: fromOracleValues(like, [batch, chunks, heads, expandedDim], z),
  };
};

export const chunkStateOracleBackward: ChunkStateBackward = (plan, { k, v, logG }, upstream) => {
  const grads = chunkStateGradients(
    plan,
    valuesOf(k),
    valuesOf(v),
    logG && valuesOf(logG),
    upstream.s && valuesOf(upstream.s),
    upstream.z && valuesOf(upstream.z),
  );
  return {
    k: fromOracleValues(k, k.shape, grads.k),
    v: fromOracleValues(v, v.shape, grads.v),
    logG: logG && fromOracleValues(logG, logG.shape, grads.logG),
  };
};
