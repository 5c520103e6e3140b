import type { DeviceKind } from "../src/devices/device.js";
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

/** Two ways to the same numbers on one device, or a device against the oracle; the oracle itself is float64. */
export function attentionTolerance(
  kind: DeviceKind,
  dtype: Exclude<DType, "i32">,
  what: "output" | "gradient",
): number {
  if (kind === "oracle") return 1e-11;
  // WGSL promises less than IEEE: exp is good to 3 + 2|x| units of the last place, and products may not be fused.
  return kind === "webgpu" && dtype === "f32" ? 2 * TOLERANCE[what].f32 : TOLERANCE[what][dtype];
}

/** Half inputs on matrix units: features and values are rounded to f16 on the way, sums are f32. */
export const IN_F16 = { output: 8e-3, gradient: 3e-2 };

/** Numbers that a file stores as f32. */
export const STORED_F32 = 2e-7;

/**
 * How much more than the tolerance a degree may differ: a feature product (q·k)^p loses digits where q and k are nearly
 * orthogonal, by (|q||k| / |q·k|)^p, and an odd degree's layer norm divides by what may be a small deviation.
 */
export function degreeAllowance(degree: number): number {
  return degree === 2 ? 1 : 5;
}
