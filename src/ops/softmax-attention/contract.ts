import type { Tensor } from "../../tensor/tensor.js";

export interface SoftmaxPlan {
  readonly batch: number;
  readonly time: number;
  /** A multiple of `heads`; query head m reads key/value head floor(m / (queryHeads / heads)). */
  readonly queryHeads: number;
  readonly heads: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly scale: number;
}

/**
 * Causal softmax attention: output_i = Σ_{j ≤ i} softmax_j(scale · q_i·k_j) v_j. Tiled: never T×T in memory.
 * q [B, T, Hq, d], k [B, T, H, d], v [B, T, H, e] of one float dtype, innermost axes contiguous.
 */
export interface SoftmaxInputs {
  q: Tensor;
  k: Tensor;
  v: Tensor;
}

/**
 * output [B, T, Hq, e] in q's dtype; `saved` is for the device's own backward (row maxima and sums, and the output
 * before it was rounded to a half format).
 */
export type SoftmaxForward = (plan: SoftmaxPlan, inputs: SoftmaxInputs) => { output: Tensor; saved: Tensor[] };

/** `upstream` is contiguous, in the output's dtype. */
export type SoftmaxBackward = (
  plan: SoftmaxPlan,
  inputs: SoftmaxInputs,
  output: Tensor,
  saved: readonly Tensor[],
  upstream: Tensor,
) => { q: Tensor; k: Tensor; v: Tensor };
