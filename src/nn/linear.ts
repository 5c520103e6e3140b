import type { NormBefore } from "../ops/linear/contract.js";
import { type Activation, linear } from "../ops/linear/index.js";
import { normLinear } from "../ops/linear/norm-linear.js";
import type { Tensor } from "../tensor/tensor.js";
import { Module } from "./module.js";
import { constantParameter, type ModuleOptions, normalParameter } from "./options.js";

export interface LinearOptions extends ModuleOptions {
  /** Default true. */
  bias?: boolean;
  /** Applied to the result, inside the same kernel. Default "none". */
  activation?: Activation;
  /** Standard deviation of the initial weight. Default 0.02. */
  deviation?: number;
}

/** residual + activation(x · weightᵀ + bias): [..., inputs] to [..., outputs]. weight is [outputs, inputs]. */
export class Linear extends Module {
  readonly weight: Tensor;
  readonly bias: Tensor | undefined;
  readonly activation: Activation;

  constructor(inputs: number, outputs: number, options: LinearOptions) {
    super();
    this.weight = normalParameter([outputs, inputs], options.deviation ?? 0.02, options);
    this.bias = (options.bias ?? true) ? constantParameter([outputs], 0, options) : undefined;
    this.activation = options.activation ?? "none";
  }

  /** activation(norm(x) · weightᵀ + bias), without gradients: while writing. */
  afterNorm(x: Tensor, norm: NormBefore): Tensor {
    return normLinear(x, norm, this)[0];
  }

  forward(x: Tensor, residual?: Tensor): Tensor {
    return linear(x, this.weight, this.bias, { activation: this.activation, residual });
  }
}
