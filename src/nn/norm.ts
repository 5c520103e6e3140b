import { layerNorm, norm } from "../ops/layer-norm/index.js";
import type { NormBefore } from "../ops/linear/contract.js";
import { rmsNorm } from "../ops/rms-norm/index.js";
import type { DType } from "../tensor/dtype.js";
import type { Tensor } from "../tensor/tensor.js";
import { Module } from "./module.js";
import { constantParameter, type ModuleOptions } from "./options.js";

/** Half formats are what the products after a norm take; a norm of an f32 model gives what it gets. */
function outputOf(x: Tensor, { dtype = "f32" }: ModuleOptions): DType {
  return dtype === "f32" ? x.dtype : dtype;
}

/** Rows of zero mean and unit variance, scaled and (by default) shifted. */
export class LayerNorm extends Module {
  readonly weight: Tensor;
  readonly bias: Tensor | undefined;

  constructor(
    size: number,
    private readonly options: ModuleOptions & { bias?: boolean },
    readonly epsilon = 1e-5,
  ) {
    super();
    this.weight = constantParameter([size], 1, options);
    this.bias = (options.bias ?? true) ? constantParameter([size], 0, options) : undefined;
  }

  /** As `normLinear` takes it. */
  get before(): NormBefore {
    return { weight: this.weight, bias: this.bias, epsilon: this.epsilon, centered: true };
  }

  /** The norm of x, and x for the residual stream to go on with: see `norm`. */
  passing(x: Tensor): { output: Tensor; passed: Tensor } {
    return norm("layerNorm", x, this.weight, this.bias, true, this.epsilon, outputOf(x, this.options));
  }

  forward(x: Tensor): Tensor {
    return layerNorm(x, this.weight, this.bias, this.epsilon, outputOf(x, this.options));
  }
}

/** Rows of unit mean square, scaled. */
export class RMSNorm extends Module {
  readonly weight: Tensor;

  constructor(
    size: number,
    private readonly options: ModuleOptions,
    readonly epsilon = 1e-5,
  ) {
    super();
    this.weight = constantParameter([size], 1, options);
  }

  /** As `normLinear` takes it. */
  get before(): NormBefore {
    return { weight: this.weight, bias: undefined, epsilon: this.epsilon, centered: false };
  }

  /** The norm of x, and x for the residual stream to go on with: see `norm`. */
  passing(x: Tensor): { output: Tensor; passed: Tensor } {
    return norm("rmsNorm", x, this.weight, undefined, false, this.epsilon, outputOf(x, this.options));
  }

  forward(x: Tensor): Tensor {
    return rmsNorm(x, this.weight, this.epsilon, outputOf(x, this.options));
  }
}
