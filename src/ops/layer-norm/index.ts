import type { DType } from "../../tensor/dtype.js";
import { record } from "../../tensor/tape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { operation } from "../operation.js";
import type { NormPlan } from "./contract.js";
import * as oracle from "./oracle.js";
import * as wasm from "./wasm.js";
import * as webgpu from "./webgpu.js";

const forward = operation("norm", { oracle: oracle.normForward, wasm: wasm.normForward, webgpu: webgpu.normForward });
const backward = operation("norm backward", {
  oracle: oracle.normBackward,
  wasm: wasm.normBackward,
  webgpu: webgpu.normBackward,
});

/**
 * The part that layerNorm and rmsNorm share. `passed` is x itself, for a residual stream to go on with: the norm's
 * backward then adds the stream's gradient on the way.
 */
export function norm(
  caller: string,
  x: Tensor,
  weight: Tensor,
  bias: Tensor | undefined,
  centered: boolean,
  epsilon: number,
  dtype: DType = x.dtype,
): { output: Tensor; passed: Tensor } {
  const width = x.shape.at(-1) ?? 0;
  for (const [name, vector] of Object.entries({ weight, bias })) {
    if (vector && (vector.shape.length !== 1 || vector.shape[0] !== width)) {
      throw new RangeError(
        `${caller}: ${name} must have shape [${width}], as x's last axis, got [${vector.shape.join(", ")}]`,
      );
    }
    if (vector && vector.device !== x.device) throw new TypeError(`${caller}: x and ${name} must be on one device`);
  }
  if (!(epsilon > 0)) throw new RangeError(`${caller}: epsilon must be above 0, got ${epsilon}`);
  if (width === 0)
    throw new RangeError(`${caller}: x needs a last axis of at least 1, got shape [${x.shape.join(", ")}]`);
  const plan: NormPlan = { rows: x.size / width, width, epsilon, centered, dtype };
  const inputs = { x: x.contiguous(), weight: weight.contiguous(), bias: bias?.contiguous() };
  const { output, statistics } = forward(x.device, plan, inputs);
  const parameters = bias ? [weight, bias] : [weight];
  const kept = [inputs.x, inputs.weight, statistics, ...(inputs.bias ? [inputs.bias] : [])];
  const passed = x.detach();
  record(caller, [x, ...parameters], [output, passed], kept, ([g, gPassed], [xs, w, s, b]) => {
    if (!g) return [gPassed];
    const more = gPassed?.to(xs.dtype).contiguous();
    const grads = backward(x.device, plan, { x: xs, weight: w, bias: b }, s, g.contiguous(), more);
    return [grads.x, grads.weight, grads.bias];
  });
  return { output, passed };
}

/**
 * Each row centered and scaled to unit variance: (x − mean) / √(var + epsilon) · weight + bias, over the last axis.
 *
 * @param x [..., n], a float dtype; the output has its shape
 * @param weight [n]
 * @param bias [n], optional
 * @param dtype of the output; default x's
 * @throws RangeError where shapes disagree, TypeError where devices do
 * Source: Ba, Kiros and Hinton 2016.
 */
export function layerNorm(x: Tensor, weight: Tensor, bias?: Tensor, epsilon = 1e-5, dtype = x.dtype): Tensor {
  const { output, passed } = norm("layerNorm", x, weight, bias, true, epsilon, dtype);
  passed.dispose();
  return output;
}
