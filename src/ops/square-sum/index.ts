import type { Tensor } from "../../tensor/tensor.js";
import { operation } from "../operation.js";
import * as oracle from "./oracle.js";
import * as wasm from "./wasm.js";
import * as webgpu from "./webgpu.js";

const run = operation("squareSum", { oracle: oracle.squareSum, wasm: wasm.squareSum, webgpu: webgpu.squareSum });

/**
 * Σ x² over all elements of all tensors: the square of the global norm that `adamw` clips by. No gradient.
 *
 * @param tensors at least one, of any shapes and float dtypes, on one device
 * @returns an f32 scalar
 */
export function squareSum(tensors: readonly Tensor[]): Tensor {
  if (tensors.length === 0) throw new RangeError("squareSum: at least one tensor is needed, got none");
  return run(
    tensors[0].device,
    tensors.map((tensor) => tensor.detach().contiguous()),
  );
}
