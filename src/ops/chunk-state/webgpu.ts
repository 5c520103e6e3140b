import { empty, scope, type Tensor } from "../../tensor/tensor.js";
import { statesOnMatrixUnits } from "../power-attention/matrix-units/index.js";
import { gateGradient, gateSums } from "../power-attention/webgpu-gates.js";
import { eachPart, take, takeChunks } from "../power-attention/webgpu-parts.js";
import { finishGradient, zerosLike } from "../power-attention/webgpu-rows.js";
import { readState, stateGradient } from "../query-state/webgpu-query.js";
import type { ChunkStateBackward, ChunkStateForward } from "./contract.js";
import { accumulateFeatures } from "./webgpu-accumulate.js";
import { chunkStateGradientsOnMatrixUnits, chunkStateOnMatrixUnits, type KeyGradients } from "./webgpu-matrix-units.js";

export const chunkStateWebGpu: ChunkStateForward = (plan, { k, v, logG }) =>
  scope(() => {
    const { batch, chunks, heads, expandedDim, valueDim } = plan;
    const s = empty([batch, chunks, heads, expandedDim, valueDim], k.device, "f32");
    const z = empty([batch, chunks, heads, expandedDim], k.device, "f32");
    const halves = statesOnMatrixUnits(plan, k);
    if (halves) {
      eachPart(halves.parts, (part) => {
        const own = { k: take(k, part), v: take(v, part), gates: gateSums(part.plan, take(logG, part), k) };
        chunkStateOnMatrixUnits(part.plan, halves.tiles, own, takeChunks({ s, z }, part));
      });
    } else accumulateFeatures(plan, { keys: k, y: v }, gateSums(plan, logG, k), { s, z });
    return { s, z };
  });

export const chunkStateBackwardWebGpu: ChunkStateBackward = (plan, { k, v, logG }, upstream) =>
  scope(() => {
    const { batch, chunks, heads, expandedDim, valueDim } = plan;
    const states = {
      s: upstream.s ?? zerosLike([batch, chunks, heads, expandedDim, valueDim], k, "f32"),
      z: upstream.z ?? zerosLike([batch, chunks, heads, expandedDim], k, "f32"),
    };
    const halves = statesOnMatrixUnits(plan, k);
    let gradients: KeyGradients;
    if (halves) {
      const like = (x: Tensor) => empty(x.shape, x.device, x.dtype);
      const products = logG && empty(k.shape.slice(0, 3), k.device, "f32");
      gradients = { k: like(k), v: like(v), products };
      eachPart(halves.parts, (part) => {
        const own = { k: take(k, part), v: take(v, part), gates: gateSums(part.plan, take(logG, part), k) };
        const into = { k: take(gradients.k, part), v: take(gradients.v, part), products: take(products, part) };
        chunkStateGradientsOnMatrixUnits(part.plan, halves.tiles, own, takeChunks(states, part), into);
      });
    } else {
      const gates = gateSums(plan, logG, k);
      const [dK, dV] = [k, v].map((x) => empty(x.shape, k.device, "f32"));
      stateGradient(plan, "keys", k, v, undefined, states, gates, dK, false);
      readState(plan, "keys", k, states, gates, dV, undefined, false);
      const fromK = finishGradient(k, dK, logG && plan.degree);
      gradients = { k: fromK.result, v: finishGradient(v, dV, undefined).result, products: fromK.products };
    }
    return {
      k: gradients.k,
      v: gradients.v,
      logG: logG && gateGradient(plan, k, { keys: gradients.products, prefix: true }),
    };
  });
