import { empty, scope } from "../../tensor/tensor.js";
import { tilesFor } from "../power-attention/matrix-units/index.js";
import { gateGradient, gateSums } from "../power-attention/webgpu-gates.js";
import { finishGradient, zerosLike } from "../power-attention/webgpu-rows.js";
import type { ChunkAttentionBackward, ChunkAttentionForward } from "./contract.js";
import { chunkAttentionGradientsOnMatrixUnits, chunkAttentionOnMatrixUnits } from "./webgpu-matrix-units.js";
import { pairs } from "./webgpu-pairs.js";

export const chunkAttentionWebGpu: ChunkAttentionForward = (plan, { q, k, v, logG }) =>
  scope(() => {
    const { batch, time, queryHeads, valueDim } = plan;
    const gates = gateSums(plan, logG, q);
    const tiles = tilesFor(plan, q);
    if (tiles) return chunkAttentionOnMatrixUnits(plan, tiles, { q, k, v, gates });
    const output = empty([batch, time, queryHeads, valueDim], q.device, "f32");
    const sum = empty([batch, time, queryHeads], q.device, "f32");
    pairs(plan, "output", { q, k, v, gates }, output, sum);
    return { output, sum };
  });

export const chunkAttentionBackwardWebGpu: ChunkAttentionBackward = (plan, { q, k, v, logG }, upstream) =>
  scope(() => {
    const { batch, time, queryHeads, valueDim } = plan;
    const dy = upstream.output ?? zerosLike([batch, time, queryHeads, valueDim], q, "f32");
    const rowB = upstream.sum ?? zerosLike([batch, time, queryHeads], q, "f32");
    const gates = gateSums(plan, logG, q);
    const tiles = tilesFor(plan, q);
    if (tiles) {
      const { products, ...gradients } = chunkAttentionGradientsOnMatrixUnits(
        plan,
        tiles,
        { q, k, v, gates },
        dy,
        rowB,
      );
      return { ...gradients, logG: logG && gateGradient(plan, q, { queries: products?.q, keys: products?.k }) };
    }
    const given = { q, k, v, gates, dy, rowB };
    const [dQ, dK, dV] = [q, k, v].map((x) => empty(x.shape, q.device, "f32"));
    pairs(plan, "dQ", given, dQ);
    pairs(plan, "dK", given, dK);
    pairs(plan, "dV", { ...given, rowB: undefined }, dV);
    const degree = logG && plan.degree;
    const [fromQ, fromK] = [finishGradient(q, dQ, degree), finishGradient(k, dK, degree)];
    return {
      q: fromQ.result,
      k: fromK.result,
      v: finishGradient(v, dV, undefined).result,
      logG: logG && gateGradient(plan, q, { queries: fromQ.products, keys: fromK.products }),
    };
  });
