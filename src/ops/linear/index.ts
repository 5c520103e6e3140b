import type { DType } from "../../tensor/dtype.js";
import { isRecording, record } from "../../tensor/tape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { gelu, logSigmoid, relu, silu } from "../elementwise/index.js";
import { matmul } from "../matmul/index.js";
import { floatOnly, gradientDType, operation, sameKind } from "../operation.js";
import { columnSums } from "../reduce/sum-over.js";
import type { Activation } from "./contract.js";
import * as oracle from "./oracle.js";
import * as wasm from "./wasm.js";
import * as webgpu from "./webgpu.js";
import * as webgpuGradients from "./webgpu-gradients.js";

export type { Activation } from "./contract.js";

const run = operation("linear", {
  oracle: oracle.linearForward,
  wasm: wasm.linearForward,
  webgpu: webgpu.linearForward,
});
/** gᵀ · x: g [rows, outputs], x [rows, inputs]. */
const plainGradient = (g: Tensor, x: Tensor, dtype: DType) => matmul(g.transpose(), x, { dtype });
const weightGradient = operation("linear (gradient of weight)", {
  oracle: plainGradient,
  wasm: plainGradient,
  webgpu: webgpuGradients.weightGradient,
});
/** g · w: w [outputs, inputs]. */
const plainInputGradient = (g: Tensor, w: Tensor) => matmul(g, w);
const inputGradient = operation("linear (gradient of x)", {
  oracle: plainInputGradient,
  wasm: plainInputGradient,
  webgpu: webgpuGradients.inputGradient,
});

export interface LinearOptions {
  activation?: Activation;
  residual?: Tensor;
  dtype?: DType;
}

const activations = { gelu, relu, silu, logSigmoid };

/**
 * residual + activation(x · weightᵀ + bias) over the last axis, one pass over the result.
 *
 * @param x [..., inputs], a float dtype; views are read in place
 * @param weight [outputs, inputs], of x's dtype; `w.transpose()` of an [inputs, outputs] matrix is read in place too
 * @param bias [outputs], any float dtype; optional
 * @param options activation: "none" (default), "gelu" (GPT-2's form), "relu", "silu" or "logSigmoid";
 *   residual: [..., outputs], any float dtype, none by default; dtype: of the result, default residual's, or x's without one
 * @returns [..., outputs]. The gradients of leaves among weight and bias are f32.
 * @throws RangeError where shapes disagree, TypeError where dtypes or devices do
 */
export function linear(
  x: Tensor,
  weight: Tensor,
  bias?: Tensor,
  { activation = "none", residual, dtype = residual?.dtype ?? x.dtype }: LinearOptions = {},
): Tensor {
  const show = (t: Tensor) => `[${t.shape.join(", ")}]`;
  const inputs = x.shape.at(-1);
  if (x.shape.length < 1 || weight.shape.length !== 2 || weight.shape[1] !== inputs) {
    throw new RangeError(
      `linear: weight must have shape [outputs, ${inputs}], as x ${show(x)} asks, got ${show(weight)}`,
    );
  }
  if (bias && (bias.shape.length !== 1 || bias.shape[0] !== weight.shape[0])) {
    throw new RangeError(`linear: bias must have shape [${weight.shape[0]}], got ${show(bias)}`);
  }
  floatOnly("linear", x);
  sameKind("linear", x, weight);
  const lead = x.shape.slice(0, -1);
  if (residual && residual.shape.join() !== [...lead, weight.shape[0]].join()) {
    throw new RangeError(
      `linear: residual must have the result's shape [${[...lead, weight.shape[0]].join(", ")}], got ${show(residual)}`,
    );
  }
  for (const [name, t] of Object.entries({ bias, residual })) {
    if (t && t.device !== x.device) throw new TypeError(`linear: x and ${name} must be on one device; use copyTo()`);
  }
  const wanted = [x, weight, bias].map((t) => isRecording() && t?.requiresGrad === true);
  // A gradient of the activation reads what went into it, which the fused kernel does not keep.
  const after = wanted.includes(true) && activation !== "none" ? activations[activation] : undefined;
  const count = lead.reduce((a, b) => a * b, 1);
  const rows = x.reshape([count, inputs]);
  const before = residual?.contiguous().reshape([count, weight.shape[0]]);
  const fused = after ? undefined : before;
  const product = run(x.device, rows, weight, {
    bias: bias?.contiguous(),
    activation: after ? "none" : activation,
    residual: fused,
    dtype,
  });
  const parameters = bias ? [weight, bias] : [weight];
  const [weightDType, biasDType] = [gradientDType(weight), bias && gradientDType(bias)];
  // out = r + x·wᵀ + b, so dx = g·w, dw = gᵀ·x, db sums the rows of g, and dr is g.
  record(
    "linear",
    [rows, ...parameters, ...(fused ? [fused] : [])],
    [product],
    [rows, weight],
    ([upstream], [xs, w]) => {
      if (!upstream) return [];
      const g = upstream.to(xs.dtype);
      return [
        wanted[0] ? inputGradient(g.device, g, w) : undefined,
        wanted[1] ? weightGradient(g.device, g, xs, weightDType) : undefined,
        ...(bias ? [wanted[2] ? columnSums(g).to(biasDType!) : undefined] : []),
        ...(fused ? [upstream.to(fused.dtype)] : []),
      ];
    },
  );
  const output = product.reshape([...lead, weight.shape[0]]);
  if (!after) return output;
  const active = after(output);
  return residual ? active.add(residual.to(dtype)) : active;
}
