import { empty, scope } from "../../tensor/tensor.js";
import { gateGradient, gateSums } from "../power-attention/webgpu-gates.js";
import { finishGradient, zerosLike } from "../power-attention/webgpu-rows.js";
import { readState, stateGradient } from "../query-state/webgpu-query.js";
import type { ChunkStateBackward, ChunkStateForward } from "./contract.js";
import { accumulateFeatures } from "./webgpu-accumulate.js";

export const chunkStateWebGpu: ChunkStateForward = (plan, { k, v, logG }) =>
  scope(() => {
    const { batch, chunks, heads, expandedDim, valueDim } = plan;
    const s = empty([batch, chunks, heads, expandedDim, valueDim], k.device, "f32");
    const z = empty([batch, chunks, heads, expandedDim], k.device, "f32");
    accumulateFeatures(plan, { keys: k, y: v }, gateSums(plan, logG, k), { s, z });
    return { s, z };
  });

export const chunkStateBackwardWebGpu: ChunkStateBackward = (plan, { k, v, logG }, upstream) =>
  scope(() => {
    const { batch, chunks, heads, expandedDim, valueDim } = plan;
    const states = {
      s: upstream.s ?? zerosLike([batch, chunks, heads, expandedDim, valueDim], k, "f32"),
      z: upstream.z ?? zerosLike([batch, chunks, heads, expandedDim], k, "f32"),
    };
    const gates = gateSums(plan, logG, k);
    const [dK, dV] = [k, v].map((x) => empty(x.shape, k.device, "f32"));
    stateGradient(plan, "keys", k, v, undefined, states, gates, dK, false);
    readState(plan, "keys", k, states, gates, dV, undefined, false);
    const fromK = finishGradient(k, dK, logG && plan.degree);
    return {
      k: fromK.result,
      v: finishGradient(v, dV, undefined).result,
      logG: logG && gateGradient(plan, k, { keys: fromK.products, prefix: true }),
    };
  });
