import { empty, scope } from "../../tensor/tensor.js";
import { accumulateFeatures } from "../chunk-state/webgpu-accumulate.js";
import { statesOnMatrixUnits } from "../power-attention/matrix-units/index.js";
import { gateGradient, gateSums } from "../power-attention/webgpu-gates.js";
import { eachPart, take, takeChunks } from "../power-attention/webgpu-parts.js";
import { finishGradient, zerosLike } from "../power-attention/webgpu-rows.js";
import type { QueryStateBackward, QueryStateForward } from "./contract.js";
import {
  type QueryGradients,
  queryStateGradientsOnMatrixUnits,
  queryStateOnMatrixUnits,
} from "./webgpu-matrix-units.js";
import { readState, stateGradient } from "./webgpu-query.js";

export const queryStateWebGpu: QueryStateForward = (plan, { q, states, logG }) =>
  scope(() => {
    const { batch, time, queryHeads, valueDim } = plan;
    const output = empty([batch, time, queryHeads, valueDim], q.device, "f32");
    const sum = empty([batch, time, queryHeads], q.device, "f32");
    const halves = statesOnMatrixUnits(plan, q);
    if (halves) {
      eachPart(halves.parts, (part) => {
        const gates = gateSums(part.plan, take(logG, part), q);
        const own = { q: take(q, part), states: takeChunks(states, part), gates };
        queryStateOnMatrixUnits(part.plan, halves.tiles, own, { output: take(output, part), sum: take(sum, part) });
      });
    } else readState(plan, "queries", q, states, gateSums(plan, logG, q), output, sum, false);
    return { output, sum };
  });

export const queryStateBackwardWebGpu: QueryStateBackward = (plan, { q, states, logG }, upstream) =>
  scope(() => {
    const { batch, time, queryHeads, valueDim } = plan;
    const dy = upstream.output ?? zerosLike([batch, time, queryHeads, valueDim], q, "f32");
    const dsum = upstream.sum ?? zerosLike([batch, time, queryHeads], q, "f32");
    const dStates = { s: empty(states.s.shape, q.device, "f32"), z: empty(states.z.shape, q.device, "f32") };
    const halves = statesOnMatrixUnits(plan, q);
    let gradients: QueryGradients;
    if (halves) {
      const products = logG && empty(q.shape.slice(0, 3), q.device, "f32");
      gradients = { q: empty(q.shape, q.device, q.dtype), states: dStates, products };
      eachPart(halves.parts, (part) => {
        const gates = gateSums(part.plan, take(logG, part), q);
        const own = { q: take(q, part), states: takeChunks(states, part), gates };
        const arriving = { dy: take(dy, part), dsum: take(dsum, part) };
        const into = {
          q: take(gradients.q, part),
          products: take(products, part),
          states: takeChunks(dStates, part),
        };
        queryStateGradientsOnMatrixUnits(part.plan, halves.tiles, own, arriving, into);
      });
    } else {
      const gates = gateSums(plan, logG, q);
      const dQ = empty(q.shape, q.device, "f32");
      stateGradient(plan, "queries", q, dy, dsum, states, gates, dQ, false);
      accumulateFeatures(plan, { queries: q, y: dy, dsum }, gates, dStates);
      const fromQ = finishGradient(q, dQ, logG && plan.degree);
      gradients = { q: fromQ.result, states: dStates, products: fromQ.products };
    }
    return {
      q: gradients.q,
      states: dStates,
      logG: logG && gateGradient(plan, q, { queries: gradients.products }),
    };
  });
