import { oracleOutput, valuesOf } from "../../devices/oracle.js";
import type { DType } from "../../tensor/dtype.js";
import { rowMajor } from "../../tensor/shape.js";
import type { Tensor } from "../../tensor/tensor.js";

/** Sum (times `factor`) or maximum over `axes`, which keep extent 1. */
export function reduce(
  kind: "sum" | "max",
  x: Tensor,
  axes: readonly number[],
  factor = 1,
  dtype: DType = x.dtype,
): Tensor {
  const shape = x.shape.map((n, k) => (axes.includes(k) ? 1 : n));
  const { tensor, values } = oracleOutput({ device: x.device, dtype }, shape);
  if (kind === "max") values.fill(Number.NEGATIVE_INFINITY);
  const from = rowMajor(x.shape);
  const to = rowMajor(shape);
  for (const [k, value] of valuesOf(x).entries()) {
    const at = x.shape.reduce(
      (sum, n, axis) => sum + (shape[axis] === n ? (Math.floor(k / from[axis]) % n) * to[axis] : 0),
      0,
    );
    values[at] = kind === "sum" ? values[at] + value : Math.max(values[at], value);
  }
  for (const k of values.keys()) values[k] *= factor;
  return tensor;
}
