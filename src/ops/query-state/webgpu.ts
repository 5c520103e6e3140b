import { empty, scope } from "../../tensor/tensor.js";
import { accumulateFeatures } from "../chunk-state/webgpu-accumulate.js";
import { gateGradient, gateSums } from "../power-attention/webgpu-gates.js";
import { finishGradient, zerosLike } from "../power-attention/webgpu-rows.js";
import type { QueryStateBackward, QueryStateForward } from "./contract.js";
import { readState, stateGradient } from "./webgpu-query.js";

export const queryStateWebGpu: QueryStateForward = (plan, { q, states, logG }) =>
  scope(() => {
    const { batch, time, queryHeads, valueDim } = plan;
    const output = empty([batch, time, queryHeads, valueDim], q.device, "f32");
    const sum = empty([batch, time, queryHeads], q.device, "f32");
    readState(plan, "queries", q, states, gateSums(plan, logG, q), output, sum, false);
    return { output, sum };
  });

export const queryStateBackwardWebGpu: QueryStateBackward = (plan, { q, states, logG }, upstream) =>
  scope(() => {
    const { batch, time, queryHeads, valueDim } = plan;
    const dy = upstream.output ?? zerosLike([batch, time, queryHeads, valueDim], q, "f32");
    const dsum = upstream.sum ?? zerosLike([batch, time, queryHeads], q, "f32");
    const gates = gateSums(plan, logG, q);
    const dQ = empty(q.shape, q.device, "f32");
    stateGradient(plan, "queries", q, dy, dsum, states, gates, dQ, false);
    const dStates = { s: empty(states.s.shape, q.device, "f32"), z: empty(states.z.shape, q.device, "f32") };
    accumulateFeatures(plan, { queries: q, y: dy, dsum }, gates, dStates);
    const fromQ = finishGradient(q, dQ, logG && plan.degree);
    return {
      q: fromQ.result,
      states: dStates,
      logG: logG && gateGradient(plan, q, { queries: fromQ.products }),
    };
  });
