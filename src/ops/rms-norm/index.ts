import type { Tensor } from "../../tensor/tensor.js";
import { norm } from "../layer-norm/index.js";

/**
 * Each row scaled to unit mean square: x / √(mean(x²) + epsilon) · weight, over the last axis.
 *
 * @param x [..., n], a float dtype; the output has its shape
 * @param weight [n]
 * @param dtype of the output; default x's
 * @throws RangeError where shapes disagree, TypeError where devices do
 * Source: Zhang and Sennrich 2019.
 */
export function rmsNorm(x: Tensor, weight: Tensor, epsilon = 1e-5, dtype = x.dtype): Tensor {
  const { output, passed } = norm("rmsNorm", x, weight, undefined, false, epsilon, dtype);
  passed.dispose();
  return output;
}
