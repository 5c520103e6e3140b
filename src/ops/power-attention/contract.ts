import type { Tensor } from "../../tensor/tensor.js";

/** What is done to y at the end; see PowerPlan. */
export type Normalize = "sum" | "layernorm" | "none";

/** Dimensions that the operations of power attention share. */
export interface SequencePlan {
  readonly batch: number;
  readonly time: number;
  /** A multiple of `heads`; query head m reads key/value head floor(m / (queryHeads / heads)). */
  readonly queryHeads: number;
  /** Key/value heads. */
  readonly heads: number;
  /** Of q and k: 1 … 256. */
  readonly headDim: number;
  /** Of v and the output: 1 … 256. */
  readonly valueDim: number;
  readonly degree: number;
  readonly scale: number;
  /** Tokens in a chunk, at most max(time, 1): the last chunk may be ragged, a lone chunk never is. */
  readonly chunkSize: number;
  /** ceil(time / chunkSize); 0 where time is 0. */
  readonly chunks: number;
  /** D; 0 for degrees above 4, which have no states. */
  readonly expandedDim: number;
  readonly gated: boolean;
}

/**
 * A checked call of powerFull. `quadratic` is the chunked form with (at most) one chunk: states then are only made
 * where the caller passes or asks for one, which `usesState` tells.
 */
export interface PowerPlan extends SequencePlan {
  readonly form: "quadratic" | "chunked";
  /**
   * - "sum": out = y / Σ_j w, and 0 where that sum is exactly 0 (gradients too); even degrees only
   * - "layernorm": (y − mean) / (std + 1e-5), population std over valueDim
   * - "none": y
   */
  readonly normalize: Normalize;
  readonly hasInitialState: boolean;
  readonly returnFinalState: boolean;
  /** More than one chunk, an initial state or a final one. */
  readonly usesState: boolean;
}

/** Added to the standard deviation by `normalize: "layernorm"`. */
export const LAYERNORM_EPSILON = 1e-5;

/** s = Σ decay · φ(k) vᵀ and z = Σ decay · φ(k), in the exact sorted order of feature-map.ts, unscaled; f32. */
export interface State {
  /** [batch, heads, expandedDim, valueDim] */
  s: Tensor;
  /** [batch, heads, expandedDim] */
  z: Tensor;
}

/**
 * q [B, T, Hq, d], k [B, T, H, d], v [B, T, H, e] of one float dtype: the innermost axis is contiguous, the other
 * strides are whatever the caller's views have (0 included). logG [B, T, H] f32 and the state f32, contiguous.
 */
export interface PowerInputs {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  /** Present exactly where plan.gated. */
  logG?: Tensor;
  /** Present exactly where plan.hasInitialState. */
  initialState?: State;
}

export interface PowerResult {
  /** [B, T, Hq, e], dtype of q, contiguous. */
  output: Tensor;
  /** Present exactly where plan.returnFinalState; new tensors, also where time is 0 (copies of the initial state). */
  finalState?: State;
  /** Whatever the device's own backward wants (row sums, …); nobody else looks inside. */
  saved: Tensor[];
}

/** Gradients that arrived, contiguous, in the dtype of what they belong to; absent means zero. */
export interface PowerUpstream {
  output?: Tensor;
  finalState?: { s?: Tensor; z?: Tensor };
}

/** New contiguous tensors, each in the dtype of its input; logG and initialState exactly where the inputs have them. */
export interface PowerGradients {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  logG?: Tensor;
  initialState?: State;
}

export type PowerForward = (plan: PowerPlan, inputs: PowerInputs) => PowerResult;

export type PowerBackward = (
  plan: PowerPlan,
  inputs: PowerInputs,
  output: Tensor,
  saved: readonly Tensor[],
  upstream: PowerUpstream,
) => PowerGradients;
