import type { DType } from "../../tensor/dtype.js";
import type { Tensor } from "../../tensor/tensor.js";

/** The tensor itself where its innermost axis is contiguous, as all kernels take it; else a contiguous copy. */
export function innermost(tensor: Tensor): Tensor {
  const last = tensor.shape.length - 1;
  return tensor.strides[last] === 1 || tensor.shape[last] === 1 ? tensor : tensor.contiguous();
}

/** A gradient as kernels take it: contiguous, in the dtype of what it belongs to. */
export function toUpstream(grad: Tensor | undefined, dtype: DType): Tensor | undefined {
  return grad?.to(dtype).contiguous();
}
