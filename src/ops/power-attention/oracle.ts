import { fromOracleValues, valuesOf } from "../../devices/oracle.js";
import { chunkAttentionGradients, chunkAttentionValues } from "../chunk-attention/oracle.js";
import { chunkStateGradients, chunkStateValues, type StateValues } from "../chunk-state/oracle.js";
import { queryStateGradients, queryStateValues } from "../query-state/oracle.js";
import { stateScanGradients, stateScanValues } from "../state-scan/oracle.js";
import type { PowerBackward, PowerForward, PowerInputs, PowerPlan } from "./contract.js";
import { normalise, normaliseGradient } from "./oracle-normalise.js";

/** Whether any query reads a state: without one before the first chunk, a single chunk only makes a final state. */
function readsState(plan: PowerPlan): boolean {
  return plan.chunks > 1 || plan.hasInitialState;
}

function valuesIn(inputs: PowerInputs) {
  const { q, k, v, logG, initialState } = inputs;
  return {
    q: valuesOf(q),
    k: valuesOf(k),
    v: valuesOf(v),
    logG: logG && valuesOf(logG),
    initial: initialState && { s: valuesOf(initialState.s), z: valuesOf(initialState.z) },
  };
}

/**
 * The definition, in float64: inside each chunk the quadratic form, and before it the state. With a single chunk
 * nothing but the quadratic form is left, and no φ is computed unless a state is passed or asked for.
 */
export const powerOracle: PowerForward = (plan, inputs) => {
  const { q, k, v, logG, initial } = valuesIn(inputs);
  const { batch, time, queryHeads, heads, valueDim, expandedDim } = plan;
  const y = chunkAttentionValues(plan, q, k, v, logG);
  let final: StateValues | undefined;
  if (plan.usesState) {
    const scanned = stateScanValues(plan, chunkStateValues(plan, k, v, logG), logG, initial);
    final = scanned.final;
    if (readsState(plan)) {
      const before = queryStateValues(plan, q, scanned.entering, logG);
      for (let n = 0; n < y.output.length; n++) y.output[n] += before.output[n];
      for (let n = 0; n < y.sum.length; n++) y.sum[n] += before.sum[n];
    }
  }
  const out = normalise(plan.normalize, valueDim, y.output, y.sum);
  const f32 = { device: inputs.q.device, dtype: "f32" } as const;
  const shape = [batch, time, queryHeads, valueDim];
  return {
    output: fromOracleValues(inputs.q, shape, out),
    finalState:
      plan.returnFinalState && final
        ? {
            s: fromOracleValues(f32, [batch, heads, expandedDim, valueDim], final.s),
            z: fromOracleValues(f32, [batch, heads, expandedDim], final.z),
          }
        : undefined,
    saved: [fromOracleValues(f32, shape, y.output), fromOracleValues(f32, shape.slice(0, 3), y.sum)],
  };
};

/** The same steps in reverse; states are computed anew. */
export const powerOracleBackward: PowerBackward = (plan, inputs, output, [y, sum], upstream) => {
  const { q, k, v, logG, initial } = valuesIn(inputs);
  const { batch, time, heads } = plan;
  const dOut = upstream.output ? valuesOf(upstream.output) : new Float64Array(output.size);
  const dY = normaliseGradient(plan.normalize, plan.valueDim, valuesOf(y), valuesOf(sum), dOut);
  const inside = chunkAttentionGradients(plan, q, k, v, logG, dY.y, dY.sum);
  const dLogG = new Float64Array(batch * time * heads);
  const add = (target: Float64Array, more: Float64Array) => {
    for (let n = 0; n < target.length; n++) target[n] += more[n];
  };
  add(dLogG, inside.logG);
  let dInitial: StateValues | undefined;
  if (plan.usesState) {
    const { entering } = stateScanValues(plan, chunkStateValues(plan, k, v, logG), logG, initial);
    let dEntering: Partial<StateValues> = {};
    if (readsState(plan)) {
      const before = queryStateGradients(plan, q, entering, logG, dY.y, dY.sum);
      add(inside.q, before.q);
      add(dLogG, before.logG);
      dEntering = before.states;
    }
    const dFinal = {
      s: upstream.finalState?.s && valuesOf(upstream.finalState.s),
      z: upstream.finalState?.z && valuesOf(upstream.finalState.z),
    };
    const scanned = stateScanGradients(plan, logG, entering, dEntering, dFinal);
    const states = chunkStateGradients(plan, k, v, logG, scanned.states.s, scanned.states.z);
    add(inside.k, states.k);
    add(inside.v, states.v);
    add(dLogG, scanned.logG);
    add(dLogG, states.logG);
    dInitial = scanned.initial;
  }
  const { initialState } = inputs;
  return {
    q: fromOracleValues(inputs.q, inputs.q.shape, inside.q),
    k: fromOracleValues(inputs.k, inputs.k.shape, inside.k),
    v: fromOracleValues(inputs.v, inputs.v.shape, inside.v),
    logG: inputs.logG && fromOracleValues(inputs.logG, inputs.logG.shape, dLogG),
    initialState: initialState && {
      s: fromOracleValues(initialState.s, initialState.s.shape, dInitial!.s),
      z: fromOracleValues(initialState.z, initialState.z.shape, dInitial!.z),
    },
  };
};
