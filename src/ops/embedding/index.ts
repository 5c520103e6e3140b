import type { DType } from "../../tensor/dtype.js";
import { record } from "../../tensor/tape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { gradientDType, operation } from "../operation.js";
import * as oracle from "./oracle.js";
import * as wasm from "./wasm.js";
import * as webgpu from "./webgpu.js";

const forward = operation("embedding", {
  oracle: oracle.embeddingForward,
  wasm: wasm.embeddingForward,
  webgpu: webgpu.embeddingForward,
});
const backward = operation("embedding backward", {
  oracle: oracle.embeddingBackward,
  wasm: wasm.embeddingBackward,
  webgpu: webgpu.embeddingBackward,
});

/**
 * Rows of a table: output[..., :] = weight[ids[...], :].
 *
 * @param weight [n, d], a float dtype
 * @param ids i32, any shape; each from 0 to n − 1
 * @param options dtype: of the output; default weight's
 * @returns [...ids.shape, d]. The gradient of a leaf is f32 whatever the leaf is.
 * @throws TypeError where ids are not i32, RangeError where an id is not a row: at once on wasm and the oracle; on webgpu
 *   at the next read in check mode, and else such rows are NaN, since reading ids back would stall the GPU
 */
export function embedding(weight: Tensor, ids: Tensor, { dtype = weight.dtype }: { dtype?: DType } = {}): Tensor {
  if (ids.dtype !== "i32")
    throw new TypeError(`embedding: ids must be i32, got ${ids.dtype}; make them with dtype: "i32"`);
  if (weight.shape.length !== 2)
    throw new RangeError(`embedding: weight must have shape [n, d], got [${weight.shape.join(", ")}]`);
  if (weight.device !== ids.device) throw new TypeError("embedding: weight and ids must be on one device");
  const [table, at] = [weight.contiguous(), ids.contiguous()];
  const output = forward(weight.device, table, at, dtype);
  const gradient = gradientDType(weight);
  record("embedding", [weight], [output], [table, at], ([g], [w, i]) => [
    g && backward(w.device, w, i, g.contiguous(), gradient),
  ]);
  return output;
}
