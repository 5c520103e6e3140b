import type { Tensor } from "../../tensor/tensor.js";

/** Σ x² over all elements of all tensors (contiguous, one device), as an f32 tensor of shape []. */
export type SquareSum = (tensors: readonly Tensor[]) => Tensor;
