import { sameShape } from "../../tensor/shape.js";
import { operation } from "../operation.js";
import type { AdamWPlan, AdamWTensors } from "./contract.js";
import * as oracle from "./oracle.js";
import * as wasm from "./wasm.js";
import * as webgpu from "./webgpu.js";

const run = operation("adamw", { oracle: oracle.update, wasm: wasm.update, webgpu: webgpu.update });

/**
 * One AdamW update, in place: the memory of `parameter` (and `rounded`), `mean` and `square` is written, which no other operation on
 * tensors does. A graph recorded before the update and not yet walked backward would see the new values.
 *
 *     g = gradient · unscale · min(1, maxNorm / (unscale · √squaredNorm))
 *     mean ← β1·mean + (1 − β1)·g        square ← β2·square + (1 − β2)·g²
 *     parameter ← parameter − rate · (m̂ / (√v̂ + ε) + weightDecay · parameter)      m̂, v̂ corrected for the step
 *
 * Nothing moves where squaredNorm is not finite.
 *
 * @param plan rates and the step, 1 for the first
 * @param tensors contiguous, of one shape but for squaredNorm (f32 scalar, see `squareSum`); mean and square are f32
 * @throws RangeError where shapes disagree or a tensor is not contiguous
 * Source: Loshchilov and Hutter 2019; Kingma and Ba 2015.
 */
export function adamw(plan: AdamWPlan, tensors: AdamWTensors): void {
  const { parameter, rounded = parameter, mean, square } = tensors;
  const gradient = tensors.gradient.contiguous();
  for (const [name, tensor] of Object.entries({ gradient, rounded, mean, square })) {
    if (!sameShape(tensor.shape, parameter.shape)) {
      throw new RangeError(
        `adamw: ${name} must have the parameter's shape [${parameter.shape.join(", ")}], got [${tensor.shape.join(", ")}]`,
      );
    }
  }
  for (const [name, tensor] of Object.entries({ parameter, rounded, mean, square })) {
    if (!tensor.isContiguous) throw new RangeError(`adamw: ${name} is written in place and must be contiguous`);
  }
  if (mean.dtype !== "f32" || square.dtype !== "f32") {
    throw new TypeError(`adamw: mean and square must be f32, got ${mean.dtype} and ${square.dtype}`);
  }
  run(parameter.device, plan, { ...tensors, gradient });
}
