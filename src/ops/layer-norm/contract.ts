import type { DType } from "../../tensor/dtype.js";
import type { Tensor } from "../../tensor/tensor.js";

/** Rows of one tensor, contiguous; `weight` and `bias` are of the row's length. LayerNorm centers, RMSNorm does not. */
export interface NormInputs {
  /** [rows, width], contiguous, any float dtype. */
  x: Tensor;
  /** [width], contiguous, any float dtype. */
  weight: Tensor;
  /** [width]; only where rows are centered, and optional there. */
  bias: Tensor | undefined;
}

export interface NormPlan {
  readonly rows: number;
  readonly width: number;
  readonly epsilon: number;
  /** Subtract the mean first. */
  readonly centered: boolean;
  /** Of the output. */
  readonly dtype: DType;
}

/** output = (x − mean) · rstd · weight + bias, in the plan's dtype; `statistics` is [rows, 2] f32: mean (0 if not centered), rstd. */
export type NormForward = (plan: NormPlan, inputs: NormInputs) => { output: Tensor; statistics: Tensor };

/** Gradients in the dtypes of what they belong to. `more`: contiguous, of x's dtype, added to the gradient of x. */
export type NormBackward = (
  plan: NormPlan,
  inputs: NormInputs,
  statistics: Tensor,
  dOutput: Tensor,
  more: Tensor | undefined,
) => { x: Tensor; weight: Tensor; bias: Tensor | undefined };
