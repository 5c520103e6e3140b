import type { GPT } from "../models/gpt.js";
import type { AdamW } from "../nn/adamw.js";
import { concat, full } from "../ops/copy/index.js";
import { add } from "../ops/elementwise/index.js";
import type { DType } from "../tensor/dtype.js";
import { Scope } from "../tensor/scope.js";
import { noGrad } from "../tensor/tape.js";
import type { Tensor } from "../tensor/tensor.js";

/** Token ids of a batch, row after row, each row's targets one token on. */
export interface Batch {
  inputs: Int32Array;
  targets: Int32Array;
  /** [rows, tokens of a row] */
  shape: readonly number[];
}

export interface StepOptions {
  learningRate: number;
  /** See GPT.loss. Default false. */
  recompute?: boolean;
  dtype: DType;
}

/** What an update was like. A norm that is not finite is of gradients that overflowed: the update was left out. */
export interface StepResult {
  /** Mean over all tokens, nats. */
  loss: number;
  gradientNorm: number;
}

/**
 * What the loss is multiplied by, so that gradients of activations are numbers that f16 has: a token's own gradient times
 * 256, to a power of two, however many tokens there are. bf16 and f32 reach as far down as gradients do.
 */
function lossScaleOf(dtype: DType, tokens: number): number {
  return dtype === "f16" ? 2 ** Math.round(Math.log2(256 * tokens)) : 1;
}

/**
 * One update of a model from batches whose gradients are added up. On a GPU all of it is only queued when this returns:
 * nothing waits for a result, and the next step may be queued before this one's is awaited.
 */
export function trainStep(
  model: GPT,
  optimizer: AdamW,
  batches: readonly Batch[],
  { learningRate, recompute = false, dtype }: StepOptions,
): Promise<StepResult> {
  const { device } = model.options;
  const count = batches.reduce((n, { targets }) => n + targets.length, 0);
  const lossScale = lossScaleOf(dtype, count);
  using _ = new Scope();
  let total: Tensor | undefined;
  for (const { inputs, targets, shape } of batches) {
    using part = new Scope();
    const loss = model.loss(model.ids(inputs, shape), model.ids(targets, shape), { count, recompute });
    loss.backward(full([], lossScale, { device, dtype: "f32" }));
    const sum = noGrad(() => (total ? add(total, loss) : loss.detach()));
    part.promote(sum);
    total = sum;
  }
  const squaredNorm = optimizer.squaredNorm();
  optimizer.update(learningRate, squaredNorm, 1 / lossScale);
  model.clearGrad();
  const both = noGrad(() => concat([total!.reshape([1]), squaredNorm.reshape([1])], 0));
  return both.data().then(([loss, squared]) => ({ loss, gradientNorm: Math.sqrt(squared) / lossScale }));
}
