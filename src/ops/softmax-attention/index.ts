import { record } from "../../tensor/tape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { operation } from "../operation.js";
import { checkDevices, checkHeads, checkOptionNames, checkScale } from "../power-attention/checks.js";
import { innermost, toUpstream } from "../power-attention/views.js";
import type { SoftmaxBackward, SoftmaxForward } from "./contract.js";
import { softmaxOracle, softmaxOracleBackward } from "./oracle.js";
import { softmaxWasm, softmaxWasmBackward } from "./wasm/index.js";
import { softmaxBackwardWebGpu, softmaxWebGpu } from "./webgpu.js";

export const softmaxForward = operation<Parameters<SoftmaxForward>, ReturnType<SoftmaxForward>>("softmaxAttention", {
  oracle: softmaxOracle,
  wasm: softmaxWasm,
  webgpu: softmaxWebGpu,
});

export const softmaxBackward = operation<Parameters<SoftmaxBackward>, ReturnType<SoftmaxBackward>>(
  "softmaxAttention backward",
  { oracle: softmaxOracleBackward, wasm: softmaxWasmBackward, webgpu: softmaxBackwardWebGpu },
);

/**
 * Causal softmax attention, the baseline: output_i = Σ_{j ≤ i} softmax_j(scale · q_i·k_j) v_j. Differentiable; its cost
 * grows with T², its memory does not.
 *
 * @param q [B, T, Hq, d], any float dtype; Hq a multiple of H: query head m reads key head floor(m / (Hq/H))
 * @param k [B, T, H, d], the same dtype
 * @param v [B, T, H, e], the same dtype
 * @param options.scale default 1/√d
 * @returns [B, T, Hq, e] in q's dtype
 * @throws RangeError or TypeError where shapes, dtypes or devices disagree
 */
export function softmaxAttention(q: Tensor, k: Tensor, v: Tensor, options: { scale?: number } = {}): Tensor {
  const caller = "softmaxAttention";
  const heads = checkHeads(caller, { q, k, v });
  checkOptionNames(caller, options, ["scale"]);
  const { scale = 1 / Math.sqrt(heads.headDim) } = options;
  checkScale(caller, scale);
  const device = checkDevices(caller, { q, k, v });
  const plan = { ...heads, scale };
  const inputs = { q: innermost(q), k: innermost(k), v: innermost(v) };
  const { output, saved } = softmaxForward(device, plan, inputs);
  const all = [inputs.q, inputs.k, inputs.v];
  record(caller, all, [output], [...all, output, ...saved], ([grad], [sq, sk, sv, out, ...rest]) => {
    const upstream = toUpstream(grad, out.dtype);
    if (!upstream) return [];
    const grads = softmaxBackward(device, plan, { q: sq, k: sk, v: sv }, out, rest, upstream);
    return [grads.q, grads.k, grads.v];
  });
  for (const tensor of saved) tensor.dispose();
  return output;
}
