import type { DType } from "../src/tensor/dtype.js";

/**
 * The largest difference from the float64 oracle that a test accepts, relative to the largest value of the tensor
 * compared. Half formats round what is stored, so theirs are a few units of their last place (2^-11 and 2^-8).
 */
export const TOLERANCE: Record<"output" | "gradient", Record<Exclude<DType, "i32">, number>> = {
  output: { f32: 2e-6, f16: 1e-3, bf16: 8e-3 },
  gradient: { f32: 2e-5, f16: 4e-3, bf16: 3e-2 },
};

/** Central differences of the oracle, step 1e-6, against its gradients: both float64, relative to the largest. */
export const FINITE_DIFFERENCE = 1e-6;
