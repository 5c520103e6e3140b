import { empty, type Tensor } from "../../tensor/tensor.js";
import { mapTwo } from "../elementwise/wasm.js";
import { reduce } from "../reduce/wasm.js";

/** `batch` is the shape that the leading axes of both broadcast to. Products of all pairs, then their sums. */
export function matmul(a: Tensor, b: Tensor, batch: readonly number[]): Tensor {
  const lead = (x: Tensor) => x.shape.length - 2;
  const column = a.reshape([...a.shape, 1]);
  const row = b.reshape([...b.shape.slice(0, lead(b)), 1, ...b.shape.slice(lead(b))]);
  const products = mapTwo("mul", column, row);
  const sums = reduce("sum", products, [batch.length + 1]);
  const out = new (sums.constructor as typeof Tensor)(
    sums.storage.retain(),
    [...batch, a.shape[lead(a)], b.shape[lead(b) + 1]],
    empty([...batch, a.shape[lead(a)], b.shape[lead(b) + 1]], a.device, a.dtype).strides,
    0,
  );
  return out;
}
