import { empty, scope, type Tensor } from "../../tensor/tensor.js";
import { statesInParts } from "../power-attention/matrix-units/index.js";
import { gateGradient, gateSums } from "../power-attention/webgpu-gates.js";
import { eachPart, type Part, take, takeChunks } from "../power-attention/webgpu-parts.js";
import { finishGradient, zerosLike } from "../power-attention/webgpu-rows.js";
import { readState, stateGradient } from "../query-state/webgpu-query.js";
import type { ChunkStateBackward, ChunkStateForward, ChunkStateInputs } from "./contract.js";
import { accumulateFeatures } from "./webgpu-accumulate.js";
import { chunkStateGradientsOnMatrixUnits, chunkStateOnMatrixUnits } from "./webgpu-matrix-units.js";

const takeInputs = ({ k, v, logG }: ChunkStateInputs, part: Part) => ({
  ...{ k: take(k, part), v: take(v, part) },
  gates: gateSums(part.plan, take(logG, part), k),
});

export const chunkStateWebGpu: ChunkStateForward = (plan, inputs) =>
  scope(() => {
    const { batch, chunks, heads, expandedDim, valueDim } = plan;
    const { device } = inputs.k;
    const s = empty([batch, chunks, heads, expandedDim, valueDim], device, "f32");
    const z = empty([batch, chunks, heads, expandedDim], device, "f32");
    const { tiles, parts } = statesInParts(plan, inputs.k);
    eachPart(parts, (part) => {
      const own = takeInputs(inputs, part);
      const into = takeChunks({ s, z }, part);
      if (tiles) chunkStateOnMatrixUnits(part.plan, tiles, own, into);
      else accumulateFeatures(part.plan, { keys: own.k, y: own.v }, own.gates, into);
    });
    return { s, z };
  });

export const chunkStateBackwardWebGpu: ChunkStateBackward = (plan, inputs, upstream) =>
  scope(() => {
    const { batch, chunks, heads, expandedDim, valueDim } = plan;
    const { k, v, logG } = inputs;
    const states = {
      s: upstream.s ?? zerosLike([batch, chunks, heads, expandedDim, valueDim], k, "f32"),
      z: upstream.z ?? zerosLike([batch, chunks, heads, expandedDim], k, "f32"),
    };
    const { tiles, parts } = statesInParts(plan, k);
    const gradient = (x: Tensor) => empty(x.shape, x.device, tiles ? x.dtype : "f32");
    const [dK, dV] = [k, v].map(gradient);
    const products = tiles && logG && empty(k.shape.slice(0, 3), k.device, "f32");
    eachPart(parts, (part) => {
      const own = takeInputs(inputs, part);
      const arriving = takeChunks(states, part);
      const into = { k: take(dK, part), v: take(dV, part), products: take(products, part) };
      if (tiles) chunkStateGradientsOnMatrixUnits(part.plan, tiles, own, arriving, into);
      else {
        stateGradient(part.plan, "keys", own.k, own.v, undefined, arriving, own.gates, into.k, false);
        readState(part.plan, "keys", own.k, arriving, own.gates, into.v, undefined, false);
      }
    });
    const fromK = tiles ? { result: dK, products } : finishGradient(k, dK, logG && plan.degree);
    return {
      k: fromK.result,
      v: tiles ? dV : finishGradient(v, dV, undefined).result,
      logG: logG && gateGradient(plan, k, { keys: fromK.products, prefix: true }),
    };
  });
