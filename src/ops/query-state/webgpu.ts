import { empty, scope } from "../../tensor/tensor.js";
import { accumulateFeatures } from "../chunk-state/webgpu-accumulate.js";
import { statesInParts } from "../power-attention/matrix-units/index.js";
import { gateGradient, gateSums } from "../power-attention/webgpu-gates.js";
import { eachPart, type Part, take, takeChunks } from "../power-attention/webgpu-parts.js";
import { finishGradient, zerosLike } from "../power-attention/webgpu-rows.js";
import type { QueryStateBackward, QueryStateForward, QueryStateInputs } from "./contract.js";
import { queryStateGradientsOnMatrixUnits, queryStateOnMatrixUnits } from "./webgpu-matrix-units.js";
import { readState, stateGradient } from "./webgpu-query.js";

const takeInputs = ({ q, states, logG }: QueryStateInputs, part: Part) => ({
  ...{ q: take(q, part), states: takeChunks(states, part) },
  gates: gateSums(part.plan, take(logG, part), q),
});

export const queryStateWebGpu: QueryStateForward = (plan, inputs) =>
  scope(() => {
    const { batch, time, queryHeads, valueDim } = plan;
    const { device } = inputs.q;
    const output = empty([batch, time, queryHeads, valueDim], device, "f32");
    const sum = empty([batch, time, queryHeads], device, "f32");
    const { tiles, parts } = statesInParts(plan, inputs.q);
    eachPart(parts, (part) => {
      const own = takeInputs(inputs, part);
      const into = { output: take(output, part), sum: take(sum, part) };
      if (tiles) queryStateOnMatrixUnits(part.plan, tiles, own, into);
      else readState(part.plan, "queries", own.q, own.states, own.gates, into.output, into.sum, false);
    });
    return { output, sum };
  });

export const queryStateBackwardWebGpu: QueryStateBackward = (plan, inputs, upstream) =>
  scope(() => {
    const { batch, time, queryHeads, valueDim } = plan;
    const { q, states, logG } = inputs;
    const { device } = q;
    const dy = upstream.output ?? zerosLike([batch, time, queryHeads, valueDim], q, "f32");
    const dsum = upstream.sum ?? zerosLike([batch, time, queryHeads], q, "f32");
    const { tiles, parts } = statesInParts(plan, q);
    const dStates = { s: empty(states.s.shape, device, "f32"), z: empty(states.z.shape, device, "f32") };
    const dQ = empty(q.shape, device, tiles ? q.dtype : "f32");
    const products = tiles && logG && empty(q.shape.slice(0, 3), device, "f32");
    eachPart(parts, (part) => {
      const own = takeInputs(inputs, part);
      const arriving = { dy: take(dy, part), dsum: take(dsum, part) };
      const into = { q: take(dQ, part), products: take(products, part), states: takeChunks(dStates, part) };
      if (tiles) queryStateGradientsOnMatrixUnits(part.plan, tiles, own, arriving, into);
      else {
        stateGradient(part.plan, "queries", own.q, arriving.dy, arriving.dsum, own.states, own.gates, into.q, false);
        accumulateFeatures(part.plan, { queries: own.q, y: arriving.dy, dsum: arriving.dsum }, own.gates, into.states);
      }
    });
    const fromQ = tiles ? { result: dQ, products } : finishGradient(q, dQ, logG && plan.degree);
    return {
      q: fromQ.result,
      states: dStates,
      logG: logG && gateGradient(plan, q, { queries: fromQ.products }),
    };
  });
