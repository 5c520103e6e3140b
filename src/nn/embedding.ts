import { embedding } from "../ops/embedding/index.js";
import type { Tensor } from "../tensor/tensor.js";
import { Module } from "./module.js";
import { type ModuleOptions, normalParameter } from "./options.js";

/** A vector for each id: ids (i32, any shape) to [..., size]. weight is [count, size]. */
export class Embedding extends Module {
  readonly weight: Tensor;

  constructor(count: number, size: number, options: ModuleOptions & { deviation?: number }) {
    super();
    this.weight = normalParameter([count, size], options.deviation ?? 0.02, options);
  }

  /** @param dtype of the vectors; default the table's */
  forward(ids: Tensor, dtype = this.weight.dtype): Tensor {
    return embedding(this.weight, ids, { dtype });
  }
}
