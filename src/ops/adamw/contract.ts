import type { Tensor } from "../../tensor/tensor.js";

export interface AdamWPlan {
  readonly learningRate: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  /** Decoupled: per step the parameter shrinks by learningRate · weightDecay of itself. */
  readonly weightDecay: number;
  /** 1 for the first update. */
  readonly step: number;
  /** Gradients are scaled down to this global norm; Infinity leaves them. */
  readonly maxNorm: number;
  /** What gradients are multiplied by first, where the loss was scaled up so that half formats hold them. Default 1. */
  readonly unscale?: number;
}

export interface AdamWTensors {
  /** Any float dtype, contiguous; written. */
  parameter: Tensor;
  /** Half-precision copy of the parameter, the same shape, contiguous; written, never read. */
  rounded?: Tensor;
  /** The parameter's shape, any float dtype, contiguous. */
  gradient: Tensor;
  /** f32, contiguous; written. Running mean of the gradient. */
  mean: Tensor;
  /** f32, contiguous; written. Running mean of its square. */
  square: Tensor;
  /** f32 scalar: squared global norm of all gradients, as they are. */
  squaredNorm: Tensor;
}

/**
 * In place, with g = gradient · unscale · min(1, maxNorm / (unscale · √squaredNorm)); nothing moves where squaredNorm is
 * not finite, as where a scaled gradient overflowed:
 *     mean ← β1·mean + (1 − β1)·g       square ← β2·square + (1 − β2)·g²
 *     parameter ← parameter − learningRate · (mean/(1 − β1^step) / (√(square/(1 − β2^step)) + ε) + weightDecay · parameter)
 */
export type AdamWUpdate = (plan: AdamWPlan, tensors: AdamWTensors) => void;
