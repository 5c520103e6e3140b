import type { NormBefore } from "../ops/linear/contract.js";
import type { Activation } from "../ops/linear/index.js";
import type { Tensor } from "../tensor/tensor.js";
import { Linear } from "./linear.js";
import { Module } from "./module.js";
import type { ModuleOptions } from "./options.js";

export interface MLPOptions extends ModuleOptions {
  /** Width inside; default 4 · size. */
  hidden?: number;
  bias?: boolean;
  /** Default "gelu". */
  activation?: Activation;
  /** Standard deviation of the second weight at the start; default 0.02. */
  outDeviation?: number;
}

/** Two linear maps with an activation between, added to a residual where one is given. */
export class MLP extends Module {
  readonly up: Linear;
  readonly down: Linear;

  constructor(size: number, options: MLPOptions) {
    super();
    const { hidden = 4 * size, activation = "gelu", outDeviation, ...rest } = options;
    this.up = new Linear(size, hidden, { ...rest, activation });
    this.down = new Linear(hidden, size, { ...rest, deviation: outDeviation });
  }

  /** residual + forward(norm(x)), without gradients: while writing. */
  afterNorm(x: Tensor, norm: NormBefore, residual: Tensor): Tensor {
    return this.down.forward(this.up.afterNorm(x, norm), residual);
  }

  forward(x: Tensor, residual?: Tensor): Tensor {
    return this.down.forward(this.up.forward(x), residual);
  }
}
