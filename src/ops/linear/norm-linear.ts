import { noGrad } from "../../tensor/tape.js";
import { scope, type Tensor } from "../../tensor/tensor.js";
import { norm } from "../layer-norm/index.js";
import { operation } from "../operation.js";
import type { LinearEnd, NormBefore } from "./contract.js";
import { type LinearOptions, linear } from "./index.js";
import { fitsFewRowsNormed, linearFewRows } from "./webgpu-few-rows.js";

type Arguments = [x: Tensor, before: NormBefore, weight: Tensor, end: LinearEnd];

/** One after the other. */
function apart(...[x, { weight, bias, epsilon, centered }, matrix, end]: Arguments): Tensor {
  return noGrad(() =>
    scope(() => linear(norm("norm", x, weight, bias, centered, epsilon, matrix.dtype).output, matrix, end.bias, end)),
  );
}

function onWebGpu(...[x, before, weight, end]: Arguments): Tensor {
  const inputs = x.shape[x.shape.length - 1];
  return noGrad(() =>
    scope(() => {
      const rows = x.reshape([x.size / inputs, inputs]);
      if (!fitsFewRowsNormed(rows, weight, before)) return apart(x, before, weight, end);
      return linearFewRows(rows, weight, end, before).reshape([...x.shape.slice(0, -1), weight.shape[0]]);
    }),
  );
}

const run = operation("norm and linear", { oracle: apart, wasm: apart, webgpu: onWebGpu });

/**
 * linear(norm(x), …) without gradients: one dispatch where x is a few rows on a GPU, as while writing.
 *
 * @param x [..., inputs], a float dtype
 * @param before a norm over the last axis: weight and bias [inputs], centered for LayerNorm
 * @param weight [outputs, inputs]; the norm's result is rounded to its dtype at the most
 * @param options as linear's; dtype by default weight's
 * @returns [..., outputs]
 */
export function normLinear(
  x: Tensor,
  before: NormBefore,
  weight: Tensor,
  bias?: Tensor,
  { activation = "none", dtype = weight.dtype }: Omit<LinearOptions, "residual"> = {},
): Tensor {
  return run(x.device, x, before, weight, { bias, activation, residual: undefined, dtype });
}
