import { fromOracleValues, valuesOf } from "../../devices/oracle.js";
import type { StateValues } from "../chunk-state/oracle.js";
import { chunkRange, decayFromStart, gateAt, gatesOf } from "../power-attention/oracle-gates.js";
import type { ScanPlan, StateScanBackward, StateScanForward } from "./contract.js";

/** exp(G_end) of a chunk. */
function chunkGate(plan: ScanPlan, gates: Float64Array | undefined, b: number, c: number, h: number): number {
  return gates ? decayFromStart(plan, gates, b, h, chunkRange(plan, c)).at(-1)! : 1;
}

/** The recurrence for blocks of `block` numbers; s and z are two such arrays. */
function scan(
  plan: ScanPlan,
  block: number,
  states: Float64Array,
  gates: Float64Array | undefined,
  initial: Float64Array | undefined,
): { entering: Float64Array; final: Float64Array } {
  const { batch, heads: H, chunks: N } = plan;
  const entering = new Float64Array(states.length);
  const final = new Float64Array(batch * H * block);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < H; h++) {
      const at = (b * H + h) * block;
      const carried = final.subarray(at, at + block);
      if (initial) carried.set(initial.subarray(at, at + block));
      for (let c = 0; c < N; c++) {
        const from = ((b * N + c) * H + h) * block;
        const gate = chunkGate(plan, gates, b, c, h);
        entering.set(carried, from);
        for (let m = 0; m < block; m++) carried[m] = gate * carried[m] + states[from + m];
      }
    }
  }
  return { entering, final };
}

/** Walks the recurrence back; adds each chunk's Σ gate · dL/dgate to the gradient of all its logG. */
function scanGradient(
  plan: ScanPlan,
  block: number,
  gates: Float64Array | undefined,
  entering: Float64Array,
  dEntering: Float64Array | undefined,
  dFinal: Float64Array | undefined,
  dLogG: Float64Array,
): { states: Float64Array; initial: Float64Array } {
  const { batch, heads: H, chunks: N } = plan;
  const dStates = new Float64Array(entering.length);
  const dInitial = new Float64Array(batch * H * block);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < H; h++) {
      const at = (b * H + h) * block;
      const carried = dInitial.subarray(at, at + block);
      if (dFinal) carried.set(dFinal.subarray(at, at + block));
      for (let c = N - 1; c >= 0; c--) {
        const from = ((b * N + c) * H + h) * block;
        const gate = chunkGate(plan, gates, b, c, h);
        dStates.set(carried, from);
        let total = 0;
        for (let m = 0; m < block; m++) {
          total += gate * carried[m] * entering[from + m];
          carried[m] = gate * carried[m] + (dEntering ? dEntering[from + m] : 0);
        }
        if (!gates) continue;
        const [start, end] = chunkRange(plan, c);
        for (let t = start; t < end; t++) dLogG[gateAt(plan, b, t, h)] += total;
      }
    }
  }
  return { states: dStates, initial: dInitial };
}

export function stateScanValues(
  plan: ScanPlan,
  states: StateValues,
  logG?: Float64Array,
  initial?: StateValues,
): { entering: StateValues; final: StateValues } {
  const gates = gatesOf(logG);
  const s = scan(plan, plan.expandedDim * plan.valueDim, states.s, gates, initial?.s);
  const z = scan(plan, plan.expandedDim, states.z, gates, initial?.z);
  return { entering: { s: s.entering, z: z.entering }, final: { s: s.final, z: z.final } };
}

export function stateScanGradients(
  plan: ScanPlan,
  logG: Float64Array | undefined,
  entering: StateValues,
  dEntering: Partial<StateValues>,
  dFinal: Partial<StateValues>,
): { states: StateValues; initial: StateValues; logG: Float64Array } {
  const gates = gatesOf(logG);
  const dLogG = new Float64Array(plan.batch * plan.time * plan.heads);
  const { expandedDim, valueDim } = plan;
  const s = scanGradient(plan, expandedDim * valueDim, gates, entering.s, dEntering.s, dFinal.s, dLogG);
  const z = scanGradient(plan, expandedDim, gates, entering.z, dEntering.z, dFinal.z, dLogG);
  return { states: { s: s.states, z: z.states }, initial: { s: s.initial, z: z.initial }, logG: dLogG };
}

export const stateScanOracle: StateScanForward = (plan, { states, logG, initialState }) => {
  const { batch, heads, expandedDim, valueDim } = plan;
  const { entering, final } = stateScanValues(
    plan,
    { s: valuesOf(states.s), z: valuesOf(states.z) },
    logG && valuesOf(logG),
    initialState && { s: valuesOf(initialState.s), z: valuesOf(initialState.z) },
  );
  return {
    entering: {
      s: fromOracleValues(states.s, states.s.shape, entering.s),
      z: fromOracleValues(states.z, states.z.shape, entering.z),
    },
    finalState: {
      s: fromOracleValues(states.s, [batch, heads, expandedDim, valueDim], final.s),
      z: fromOracleValues(states.z, [batch, heads, expandedDim], final.z),
    },
  };
};

export const stateScanOracleBackward: StateScanBackward = (plan, { logG, entering }, upstream) => {
  const { batch, heads, expandedDim, valueDim } = plan;
  const grads = stateScanGradients(
    plan,
    logG && valuesOf(logG),
    { s: valuesOf(entering.s), z: valuesOf(entering.z) },
    {
      s: upstream.entering.s && valuesOf(upstream.entering.s),
      z: upstream.entering.z && valuesOf(upstream.entering.z),
    },
    {
      s: upstream.finalState.s && valuesOf(upstream.finalState.s),
      z: upstream.finalState.z && valuesOf(upstream.finalState.z),
    },
  );
  return {
    states: {
      s: fromOracleValues(entering.s, entering.s.shape, grads.states.s),
      z: fromOracleValues(entering.z, entering.z.shape, grads.states.z),
    },
    logG: logG && fromOracleValues(logG, logG.shape, grads.logG),
    initialState: plan.hasInitialState
      ? {
          s: fromOracleValues(entering.s, [batch, heads, expandedDim, valueDim], grads.initial.s),
          z: fromOracleValues(entering.z, [batch, heads, expandedDim], grads.initial.z),
        }
      : undefined,
  };
};
