import type { Tensor } from "../../tensor/tensor.js";

export interface FeaturePlan {
  /** Vectors: the product of all axes but the last. */
  readonly rows: number;
  readonly headDim: number;
  readonly degree: number;
  readonly expandedDim: number;
}

/** x: `rows` vectors of headDim, contiguous, any float dtype → [rows, expandedDim] f32, in sorted order. */
export type FeatureMapForward = (plan: FeaturePlan, x: Tensor) => Tensor;

/** upstream [rows, expandedDim] f32, contiguous → [rows, headDim] in x's dtype. */
export type FeatureMapBackward = (plan: FeaturePlan, x: Tensor, upstream: Tensor) => Tensor;
