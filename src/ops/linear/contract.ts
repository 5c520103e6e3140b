import type { Tensor } from "../../tensor/tensor.js";

export type Activation = "none" | "gelu" | "relu" | "silu";

/**
 * activation(x · weightᵀ + bias): x [rows, inputs] with any strides, weight [outputs, inputs] with any strides, bias
 * [outputs] contiguous. Returns [rows, outputs], contiguous, x's dtype.
 */
export type LinearForward = (x: Tensor, weight: Tensor, bias: Tensor | undefined, activation: Activation) => Tensor;
