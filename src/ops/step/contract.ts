import type { Tensor } from "../../tensor/tensor.js";
import type { Normalize } from "../power-attention/contract.js";

/** A state's dimensions. */
export interface CarryPlan {
  readonly batch: number;
  /** Key/value heads. */
  readonly heads: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly degree: number;
  readonly expandedDim: number;
  /** F, the tail's capacity in tokens. */
  readonly foldLength: number;
  /** Tokens in the tail before the call. */
  readonly tail: number;
  /** s and z hold something; otherwise they count as zero, whatever is in their memory. */
  readonly folded: boolean;
}

export interface StepPlan extends CarryPlan {
  readonly queryHeads: number;
  readonly scale: number;
  readonly normalize: Normalize;
  /** logG is given; otherwise the new tokens' gates are 1 (logG 0). */
  readonly gated: boolean;
  /** New tokens, at least 1; tail + tokens ≤ foldLength. */
  readonly tokens: number;
}

/**
 * What a sequence carries: f32, contiguous, written in place (these two operations are the only ones that do).
 * s and z are as in power attention and stand just before the tail's first token.
 */
export interface Carry {
  /** [B, H, D, e]; absent until the first fold */
  s?: Tensor;
  /** [B, H, D]; absent until the first fold */
  z?: Tensor;
  /** [B, F, H, d]; tokens 0 … tail − 1 are valid */
  k: Tensor;
  /** [B, F, H, e] */
  v: Tensor;
  /** [B, F, H] */
  logG: Tensor;
}

/** q [B, t, Hq, d], k [B, t, H, d], v [B, t, H, e] of one float dtype, innermost axes contiguous; logG [B, t, H] f32. */
export interface StepInputs {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  logG?: Tensor;
  /** [2, t, d/2] f32, contiguous, cosines and sines: queries and keys are turned by them first, see rotary. */
  angles?: Tensor;
}

/**
 * Copies the new tokens to the tail at `tail` … and answers their queries from the state and the tail up to each:
 *     y_i = scale^p · exp(G_i) · φ(q_i)ᵀ s + Σ_{j ≤ i} (scale · q_i·k_j)^p · exp(G_i − G_j) v_j
 * with G counted from the tail's first token, then normalises. Returns [B, t, Hq, e] in q's dtype.
 */
export type StepForward = (plan: StepPlan, carry: Carry, inputs: StepInputs) => Tensor;

/**
 * Folds the whole tail into s and z (both present): s ← exp(G_tail) · s + Σ_j exp(G_tail − G_j) φ(k_j) v_jᵀ, z likewise;
 * where not `folded` the old contents count as zero.
 */
export type FoldTail = (plan: CarryPlan, carry: Carry) => void;
