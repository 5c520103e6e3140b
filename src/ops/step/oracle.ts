import { fromOracleValues, valuesOf } from "../../devices/oracle.js";
import { monomials } from "../../feature-map.js";
import { chunkStateValues } from "../chunk-state/oracle.js";
import { expand } from "../feature-map/oracle.js";
import type { SequencePlan } from "../power-attention/contract.js";
import { gatesOf } from "../power-attention/oracle-gates.js";
import { normalise } from "../power-attention/oracle-normalise.js";
import type { Carry, CarryPlan, FoldTail, StepForward, StepInputs, StepPlan } from "./contract.js";

/** Puts the new tokens behind the tail. A carry's tensors are contiguous, so their values are the memory itself. */
function append(plan: StepPlan, carry: Carry, { k, v, logG }: StepInputs): void {
  const { batch, heads: H, tokens, foldLength: F, tail } = plan;
  const put = (target: Float64Array, values: Float64Array | undefined, width: number) => {
    for (let b = 0; b < batch; b++) {
      const at = (b * F + tail) * width;
      if (values) target.set(values.subarray(b * tokens * width, (b + 1) * tokens * width), at);
      else target.fill(0, at, at + tokens * width);
    }
  };
  put(valuesOf(carry.k), valuesOf(k), H * plan.headDim);
  put(valuesOf(carry.v), valuesOf(v), H * plan.valueDim);
  put(valuesOf(carry.logG), logG && valuesOf(logG), H);
}

export const stepOracle: StepForward = (plan, carry, inputs) => {
  append(plan, carry, inputs);
  const { batch, queryHeads: Hq, heads: H, headDim: d, valueDim: e, expandedDim: D, degree, scale } = plan;
  const { foldLength: F, tail, tokens } = plan;
  const [q, k, v] = [inputs.q, carry.k, carry.v].map(valuesOf);
  const gates = gatesOf(valuesOf(carry.logG))!;
  const s = plan.folded ? valuesOf(carry.s!) : undefined;
  const z = plan.folded ? valuesOf(carry.z!) : undefined;
  const table = monomials(d, degree);
  const phi = new Float64Array(D);
  const sum = new Float64Array(batch * tokens * Hq);
  const y = new Float64Array(sum.length * e);
  for (let b = 0; b < batch; b++) {
    for (let m = 0; m < Hq; m++) {
      const h = Math.floor(m / (Hq / H));
      for (let i = 0; i < tokens; i++) {
        const row = (b * tokens + i) * Hq + m;
        let decay = 1;
        for (let j = tail + i; j >= 0; j--) {
          const at = (b * F + j) * H + h;
          let score = 0;
          for (let n = 0; n < d; n++) score += scale * q[row * d + n] * k[at * d + n];
          const w = score ** degree * decay;
          sum[row] += w;
          for (let n = 0; n < e; n++) y[row * e + n] += w * v[at * e + n];
          decay *= gates[at];
        }
        if (!s || !z) continue;
        expand(table, q, row * d, phi);
        const from = (b * H + h) * D;
        for (let f = 0; f < D; f++) {
          const w = scale ** degree * decay * phi[f];
          sum[row] += w * z[from + f];
          for (let n = 0; n < e; n++) y[row * e + n] += w * s[(from + f) * e + n];
        }
      }
    }
  }
  return fromOracleValues(inputs.q, [batch, tokens, Hq, e], normalise(plan.normalize, e, y, sum));
};

/** The tail as a sequence of one chunk. */
function tailPlan(plan: CarryPlan): SequencePlan {
  const { batch, heads, headDim, valueDim, degree, expandedDim, tail } = plan;
  const dims = { batch, heads, queryHeads: heads, headDim, valueDim, degree, expandedDim, scale: 1, gated: true };
  return { ...dims, time: tail, chunkSize: tail, chunks: 1 };
}

export const foldTailOracle: FoldTail = (plan, carry) => {
  const { batch, heads: H, tail, foldLength: F } = plan;
  const first = (values: Float64Array) => {
    const width = values.length / (batch * F);
    const out = new Float64Array(batch * tail * width);
    for (let b = 0; b < batch; b++) out.set(values.subarray(b * F * width, (b * F + tail) * width), b * tail * width);
    return out;
  };
  const logG = first(valuesOf(carry.logG));
  const added = chunkStateValues(tailPlan(plan), first(valuesOf(carry.k)), first(valuesOf(carry.v)), logG);
  const gates = gatesOf(logG)!;
  const fold = (target: Float64Array, more: Float64Array) => {
    const block = target.length / (batch * H);
    for (let b = 0; b < batch; b++) {
      for (let h = 0; h < H; h++) {
        let gate = 1;
        for (let t = 0; t < tail; t++) gate *= gates[(b * tail + t) * H + h];
        for (let n = (b * H + h) * block; n < (b * H + h + 1) * block; n++) {
          target[n] = (plan.folded ? gate * target[n] : 0) + more[n];
        }
      }
    }
  };
  fold(valuesOf(carry.s!), added.s);
  fold(valuesOf(carry.z!), added.z);
};
