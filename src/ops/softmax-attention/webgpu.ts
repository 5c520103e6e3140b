import { webgpuDevice } from "../../devices/webgpu/device.js";
import { empty, scope } from "../../tensor/tensor.js";
import { pairs } from "../chunk-attention/webgpu-pairs.js";
import { cast } from "../copy/webgpu.js";
import { absent } from "../power-attention/webgpu-gates.js";
import { rowProducts } from "../power-attention/webgpu-rows.js";
import type { SoftmaxBackward, SoftmaxForward, SoftmaxPlan } from "./contract.js";
import { softmaxBackwardOnMatrixUnits, softmaxOnMatrixUnits, tilesFor } from "./matrix-units/index.js";

/** One chunk of all tokens, and no gates. */
function pairsPlan(plan: SoftmaxPlan) {
  return { ...plan, chunkSize: Math.max(plan.time, 1), chunks: Math.min(plan.time, 1), gated: false };
}

export const softmaxWebGpu: SoftmaxForward = (plan, { q, k, v }) =>
  scope(() => {
    const tiles = tilesFor(plan, q);
    if (tiles) return softmaxOnMatrixUnits(plan, tiles, { q, k, v });
    const { batch, time, queryHeads, valueDim } = plan;
    const unrounded = empty([batch, time, queryHeads, valueDim], q.device, "f32");
    // The backward wants the logs of the sums of exponentials, and the output unrounded.
    const logSum = empty([batch, time, queryHeads], q.device, "f32");
    pairs(pairsPlan(plan), "output", { q, k, v, gates: absent(q) }, unrounded, logSum);
    if (q.dtype === "f32") return { output: unrounded, saved: [logSum] };
    return { output: cast(unrounded, q.dtype), saved: [logSum, unrounded] };
  });

export const softmaxBackwardWebGpu: SoftmaxBackward = (plan, { q, k, v }, output, saved, dy) =>
  scope(() => {
    const tiles = tilesFor(plan, q);
    if (tiles) return softmaxBackwardOnMatrixUnits(plan, tiles, { q, k, v }, saved, dy);
    const [rowA, unrounded = output] = saved;
    const rowB = rowProducts(dy, unrounded);
    const given = { q, k, v, gates: absent(q), dy, rowA, rowB };
    const [dQ, dK, dV] = [q, k, v].map((x) => empty(x.shape, webgpuDevice(q), x.dtype));
    pairs(pairsPlan(plan), "dQ", given, dQ);
    pairs(pairsPlan(plan), "dK", given, dK);
    pairs(pairsPlan(plan), "dV", { ...given, rowB: undefined }, dV);
    return { q: dQ, k: dK, v: dV };
  });
