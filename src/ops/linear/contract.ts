import type { Tensor } from "../../tensor/tensor.js";

export type Activation = "none" | "gelu" | "relu" | "silu";

/**
 * residual + activation(x · weightᵀ + bias): x [rows, inputs] with any strides, weight [outputs, inputs] with any
 * strides, bias [outputs] and residual [rows, outputs] contiguous, of any float dtype. Returns [rows, outputs],
 * contiguous, of residual's dtype, or x's without one.
 */
export type LinearForward = (
  x: Tensor,
  weight: Tensor,
  bias: Tensor | undefined,
  activation: Activation,
  residual: Tensor | undefined,
) => Tensor;
