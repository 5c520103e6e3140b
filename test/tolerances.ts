import type { DeviceKind } from "../src/devices/device.js";
import type { DType } from "../src/tensor/dtype.js";

/**
 * The largest error of a device against the float64 oracle, relative to the largest absolute value of the tensor.
 * Half formats also round each output once: half a unit in the last place of values up to that largest one.
 */
export const ROUNDING: Record<DType, number> = { f32: 2 ** -24, f16: 2 ** -11, bf16: 2 ** -8, i32: 0 };

/** Power attention and softmax attention: f32 inside whatever the dtype. The oracle against itself: float64. */
export function attentionTolerance(kind: DeviceKind, dtype: DType, what: "output" | "gradient"): number {
  if (kind === "oracle") return 1e-11;
  return { output: 2e-6, gradient: 2e-5 }[what] + ROUNDING[dtype];
}

/** Central differences in float64 with a step of 1e-5. */
export const FINITE_DIFFERENCE = 1e-7;

/** Numbers that a file stores as f32. */
export const STORED_F32 = 2e-7;
