import type { Tensor } from "../../tensor/tensor.js";

export interface RotaryPlan {
  readonly batch: number;
  readonly time: number;
  readonly heads: number;
  /** Even: feature i is rotated with feature i + headDim / 2. */
  readonly headDim: number;
  /** 1, or −1 to rotate back: the gradient. */
  readonly direction: 1 | -1;
}

/**
 * x [B, T, H, d], the innermost axis contiguous, other strides as they are. `cos` and `sin` are
 * [T, d/2] f32, contiguous. Returns [B, T, H, d], contiguous, x's dtype:
 *     out[i] = x[i]·cos − x[i + d/2]·sin      out[i + d/2] = x[i + d/2]·cos + x[i]·sin
 */
export type Rotate = (plan: RotaryPlan, x: Tensor, cos: Tensor, sin: Tensor) => Tensor;
