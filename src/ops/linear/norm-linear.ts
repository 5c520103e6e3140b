import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { DType } from "../../tensor/dtype.js";
import { noGrad } from "../../tensor/tape.js";
import { scope, type Tensor } from "../../tensor/tensor.js";
import { norm } from "../layer-norm/index.js";
import { operation } from "../operation.js";
import type { Activation, NormBefore } from "./contract.js";
import { linear } from "./index.js";
import { bindingsOf, fitsFewRowsNormed, linearFewRows } from "./webgpu-few-rows.js";

/** activation(norm(x) · weightᵀ + bias): what `linear` takes beside x. */
export interface Projection {
  /** [outputs, inputs]; the norm's result is rounded to its dtype at the most */
  weight: Tensor;
  /** [outputs] */
  bias?: Tensor;
  /** Default "none". */
  activation?: Activation;
  /** Of the result; default weight's. */
  dtype?: DType;
}

type Arguments = [x: Tensor, before: NormBefore, projections: readonly Projection[]];

/** One after the other. */
function apart(...[x, { weight, bias, epsilon, centered }, projections]: Arguments): Tensor[] {
  return noGrad(() =>
    scope(() => {
      const normed = norm("norm", x, weight, bias, centered, epsilon, projections[0].weight.dtype).output;
      return projections.map(({ weight, bias, activation, dtype = weight.dtype }) =>
        linear(normed, weight, bias, { activation, dtype }),
      );
    }),
  );
}

function onWebGpu(...[x, before, projections]: Arguments): Tensor[] {
  const inputs = x.shape[x.shape.length - 1];
  return noGrad(() =>
    scope(() => {
      const rows = x.reshape([x.size / inputs, inputs]);
      const products = projections.map(({ weight, bias, activation = "none", dtype = weight.dtype }) => ({
        ...{ weight, bias, activation, dtype, residual: undefined },
      }));
      if (!fitsFewRowsNormed(rows, before, ...products.map(({ weight }) => weight)))
        return apart(x, before, projections);
      const together = bindingsOf(products, before) <= webgpuDevice(x).storageBindings;
      const results = together
        ? linearFewRows(rows, products, before)
        : products.flatMap((product) => linearFewRows(rows, [product], before));
      return results.map((result) => result.reshape([...x.shape.slice(0, -1), result.shape[1]]));
    }),
  );
}

const run = operation("norm and linear", { oracle: apart, wasm: apart, webgpu: onWebGpu });

/**
 * linear(norm(x), …) without gradients, of one or more weights of a dtype: one dispatch where x is a few rows on a GPU, as
 * while writing.
 *
 * @param x [..., inputs], a float dtype
 * @param before a norm over the last axis: weight and bias [inputs], centered for LayerNorm
 * @returns [..., outputs] of each projection
 */
export function normLinear(x: Tensor, before: NormBefore, ...projections: readonly Projection[]): Tensor[] {
  return run(x.device, x, before, projections);
}
