import type { DType } from "../../tensor/dtype.js";
import { Tensor } from "../../tensor/tensor.js";

/** The tensor itself where its innermost axis is contiguous, as all kernels take it; else a contiguous copy. */
export function innermost(tensor: Tensor): Tensor {
  const last = tensor.shape.length - 1;
  return tensor.strides[last] === 1 || tensor.shape[last] === 1 ? tensor : tensor.contiguous();
}

/** A gradient as kernels take it: contiguous, in the dtype of what it belongs to. */
export function toUpstream(grad: Tensor | undefined, dtype: DType): Tensor | undefined {
  return grad?.to(dtype).contiguous();
}

/** One view over tensors [B, T, heads, d] whose heads lie behind each other, as a split of one tensor gives them; else undefined. */
export function beside(...[first, ...others]: readonly Tensor[]): Tensor | undefined {
  const [batch, time, , dim] = first.shape;
  let { 2: heads } = first.shape;
  for (const x of others) {
    const alike = x.storage === first.storage && [0, 1, 2, 3].every((axis) => x.strides[axis] === first.strides[axis]);
    const next = x.offset === first.offset + heads * first.strides[2];
    if (!alike || !next || x.shape[3] !== dim) return undefined;
    heads += x.shape[2];
  }
  return new Tensor(first.storage.retain(), [batch, time, heads, dim], first.strides, first.offset);
}
