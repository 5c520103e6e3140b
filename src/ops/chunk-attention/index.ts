import { record } from "../../tensor/tape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { operation } from "../operation.js";
import { checkHeads, checkOptionNames, checkPositiveInteger, planPart } from "../power-attention/checks.js";
import { innermost, toUpstream } from "../power-attention/views.js";
import type { ChunkAttentionBackward, ChunkAttentionForward, Unnormalised } from "./contract.js";
import { chunkAttentionOracle, chunkAttentionOracleBackward } from "./oracle.js";
import { chunkAttentionWasm, chunkAttentionWasmBackward } from "./wasm.js";
import { chunkAttentionBackwardWebGpu, chunkAttentionWebGpu } from "./webgpu.js";

export const chunkAttentionForward = operation<Parameters<ChunkAttentionForward>, Unnormalised>("chunkAttention", {
  oracle: chunkAttentionOracle,
  wasm: chunkAttentionWasm,
  webgpu: chunkAttentionWebGpu,
});

export const chunkAttentionBackward = operation<Parameters<ChunkAttentionBackward>, ReturnType<ChunkAttentionBackward>>(
  "chunkAttention backward",
  { oracle: chunkAttentionOracleBackward, wasm: chunkAttentionWasmBackward, webgpu: chunkAttentionBackwardWebGpu },
);

/**
 * The quadratic form inside each chunk, not normalised: output_i = Σ_j w_ij v_j and sum_i = Σ_j w_ij with
 * w_ij = (scale · q_i·k_j)^degree · exp(G_i − G_j), over j ≤ i in i's chunk, with G the running sum of logG.
 * Differentiable.
 *
 * @param q [B, T, Hq, d], any float dtype; Hq a multiple of H
 * @param k [B, T, H, d], the same dtype
 * @param v [B, T, H, e], the same dtype
 * @param options.logG [B, T, H] f32, at most 0; default no decay
 * @param options.degree any positive integer; default 2
 * @param options.scale default 1/√d
 * @param options.chunkSize tokens in a chunk; default: one chunk of all
 * @returns output [B, T, Hq, e] and sum [B, T, Hq], f32
 * @throws RangeError or TypeError where shapes, dtypes, devices or options disagree
 */
export function chunkAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: { logG?: Tensor; degree?: number; scale?: number; chunkSize?: number } = {},
): Unnormalised {
  const caller = "chunkAttention";
  const heads = checkHeads(caller, { q, k, v });
  checkOptionNames(caller, options, ["logG", "degree", "scale", "chunkSize"]);
  const { degree = 2, scale = 1 / Math.sqrt(heads.headDim), chunkSize = Math.max(heads.time, 1) } = options;
  checkPositiveInteger(caller, "degree", degree, "use 2, or another degree of 1 or more");
  checkPositiveInteger(caller, "chunkSize", chunkSize, "leave it out for one chunk of all tokens");
  const settings = { logG: options.logG, degree, scale, chunkSize };
  const { device, plan, logG } = planPart(caller, heads, { q, k, v }, settings);
  const inputs = { q: innermost(q), k: innermost(k), v: innermost(v), logG };
  const out = chunkAttentionForward(device, plan, inputs);
  const all = [inputs.q, inputs.k, inputs.v, ...(logG ? [logG] : [])];
  record(caller, all, [out.output, out.sum], all, ([output, sum], saved) => {
    const upstream = { output: toUpstream(output, "f32"), sum: toUpstream(sum, "f32") };
    const again = { q: saved[0], k: saved[1], v: saved[2], logG: saved[3] };
    const grads = chunkAttentionBackward(device, plan, again, upstream);
    return [grads.q, grads.k, grads.v, grads.logG];
  });
  return out;
}
