import type { Tensor } from "../../tensor/tensor.js";
import type { SequencePlan } from "../power-attention/contract.js";

/**
 * The quadratic form inside each chunk, not normalised: for j ≤ i in the same chunk
 *     w[i, j] = (scale · q_i·k_j)^p · exp(G_i − G_j)      output_i = Σ_j w[i, j] v_j      sum_i = Σ_j w[i, j]
 * With chunkSize = time it is the whole quadratic form, for any degree. Never T×T in memory.
 */
export interface ChunkAttentionInputs {
  /** [B, T, Hq, d]; q, k and v share a float dtype, innermost axes contiguous. */
  q: Tensor;
  /** [B, T, H, d] */
  k: Tensor;
  /** [B, T, H, e] */
  v: Tensor;
  /** [B, T, H] f32, contiguous; present where plan.gated. */
  logG?: Tensor;
}

/** f32, contiguous. */
export interface Unnormalised {
  /** [B, T, Hq, e] */
  output: Tensor;
  /** [B, T, Hq] */
  sum: Tensor;
}

export type ChunkAttentionForward = (plan: SequencePlan, inputs: ChunkAttentionInputs) => Unnormalised;

/** Upstream parts are contiguous f32; absent means zero. */
export type ChunkAttentionBackward = (
  plan: SequencePlan,
  inputs: ChunkAttentionInputs,
  upstream: { output?: Tensor; sum?: Tensor },
) => { q: Tensor; k: Tensor; v: Tensor; logG?: Tensor };
