import type { DType } from "../../tensor/dtype.js";
import type { Tensor } from "../../tensor/tensor.js";

export type Activation = "none" | "gelu" | "relu" | "silu" | "logSigmoid";

/** What a product ends with. */
export interface LinearEnd {
  bias: Tensor | undefined;
  activation: Activation;
  residual: Tensor | undefined;
  /** Of the result. */
  dtype: DType;
}

/** A norm of x's rows before the product: see NormForward. */
export interface NormBefore {
  weight: Tensor;
  bias: Tensor | undefined;
  epsilon: number;
  centered: boolean;
}

/**
 * residual + activation(x · weightᵀ + bias): x [rows, inputs] with any strides, weight [outputs, inputs] with any
 * strides, bias [outputs] and residual [rows, outputs] contiguous, of any float dtype. Returns [rows, outputs],
 * contiguous, of `dtype`, to which the sum is rounded once.
 */
export type LinearForward = (x: Tensor, weight: Tensor, end: LinearEnd) => Tensor;
