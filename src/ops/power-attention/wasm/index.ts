import { wasmDevice } from "../../../devices/wasm/device.js";
import { isRecording } from "../../../tensor/tape.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { PowerGradients, PowerInputs, PowerPlan, PowerResult, PowerUpstream } from "../contract.js";
import { runBackward, runForward, wholeState } from "./run.js";

/** Sum-normalised outputs don't depend on the size of q, of scale, nor (without a state from outside) of k. */
function units(plan: PowerPlan) {
  const queryUnits = plan.normalize === "sum";
  return { queryUnits, keyUnits: queryUnits && !plan.hasInitialState };
}

function common(plan: PowerPlan, inputs: PowerInputs) {
  const { q, k, v, logG, initialState } = inputs;
  const reads = plan.usesState ? ("carry" as const) : ("none" as const);
  return {
    q,
    k,
    v,
    logG,
    from: initialState,
    outDtype: q.dtype,
    inside: true,
    normalize: plan.normalize,
    reads,
    ...units(plan),
  };
}

function stateShapes(plan: PowerPlan) {
  const { batch, heads, expandedDim, valueDim } = plan;
  return { s: [batch, heads, expandedDim, valueDim], z: [batch, heads, expandedDim] };
}

function wantsGradient({ q, k, v, logG, initialState }: PowerInputs): boolean {
  return isRecording() && [q, k, v, logG, initialState?.s, initialState?.z].some((x) => x?.requiresGrad);
}

/** The whole forward in one kernel; `saved` holds a number a row (1 / Σw, or the standard deviation), and `exact`. */
export function powerForwardWasm(plan: PowerPlan, inputs: PowerInputs): PowerResult {
  const { q } = inputs;
  const device = wasmDevice(q);
  const { batch, time, queryHeads, valueDim } = plan;
  const output = empty([batch, time, queryHeads, valueDim], device, q.dtype);
  const rows = empty([batch, time, queryHeads], device, "f32");
  // The gradient of a mean or norm wants the output that was not rounded.
  const exact = q.dtype !== "f32" && wantsGradient(inputs) ? empty(output.shape, device, "f32") : undefined;
  const shapes = stateShapes(plan);
  const finalState = plan.returnFinalState
    ? { s: empty(shapes.s, device, "f32"), z: empty(shapes.z, device, "f32") }
    : undefined;
  const writes = finalState ? "carry" : "none";
  runForward(device, plan, { ...common(plan, inputs), writes, output, rows, exact, to: finalState });
  return { output, finalState, saved: exact ? [rows, exact] : [rows] };
}

export function powerBackwardWasm(
  plan: PowerPlan,
  inputs: PowerInputs,
  output: Tensor,
  saved: readonly Tensor[],
  upstream: PowerUpstream,
): PowerGradients {
  const { q, k, v, logG, initialState } = inputs;
  const device = wasmDevice(q);
  const like = (x: Tensor) => empty(x.shape, device, x.dtype);
  const gradients: PowerGradients = {
    q: like(q),
    k: like(k),
    v: like(v),
    logG: logG && like(logG),
    initialState: initialState && { s: like(initialState.s), z: like(initialState.z) },
  };
  const { states, made } = wholeState(device, upstream.finalState, stateShapes(plan));
  runBackward(device, plan, {
    ...common(plan, inputs),
    writes: states ? "carry" : "none",
    output,
    rows: saved[0],
    exact: saved[1],
    upstream: { output: upstream.output, states },
    gradients: { ...gradients, from: gradients.initialState },
  });
  for (const tensor of made) tensor.dispose();
  return gradients;
}
