import type { DType } from "../../tensor/dtype.js";
import type { Tensor } from "../../tensor/tensor.js";

/** Rows of `weight` [rows, width] (contiguous) by `ids` (i32, contiguous, each below `rows`): [...ids.shape, width] of `dtype`. */
export type EmbeddingForward = (weight: Tensor, ids: Tensor, dtype: DType) => Tensor;

/** d(weight): row i is the sum of dOutput's rows where ids are i, added in the order of ids; of `dtype`. */
export type EmbeddingBackward = (weight: Tensor, ids: Tensor, dOutput: Tensor, dtype: DType) => Tensor;

/** Throws where an id is not a row. */
export function checkIds(ids: ArrayLike<number>, rows: number): void {
  for (let k = 0; k < ids.length; k++) if (!(ids[k] >= 0 && ids[k] < rows)) throw noRow(ids[k], k, rows);
}

export function noRow(id: number, at: number, rows: number): RangeError {
  return new RangeError(`embedding: ids must be from 0 to ${rows - 1}, got ${id} at ${at}; check the tokenizer`);
}
