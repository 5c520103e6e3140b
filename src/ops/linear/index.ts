import { isRecording, record } from "../../tensor/tape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { gelu, relu, silu } from "../elementwise/index.js";
import { matmul } from "../matmul/index.js";
import { floatOnly, operation, sameKind } from "../operation.js";
import { sumTo } from "../reduce/index.js";
import type { Activation } from "./contract.js";
import * as oracle from "./oracle.js";
import * as wasm from "./wasm.js";
import * as webgpu from "./webgpu.js";

export type { Activation } from "./contract.js";

const run = operation("linear", {
  oracle: oracle.linearForward,
  wasm: wasm.linearForward,
  webgpu: webgpu.linearForward,
});
const activations = { gelu, relu, silu };

/**
 * activation(x · weightᵀ + bias) over the last axis, one pass over the result.
 *
 * @param x [..., inputs], a float dtype; views are read in place
 * @param weight [outputs, inputs], of x's dtype; `w.transpose()` of an [inputs, outputs] matrix is read in place too
 * @param bias [outputs], any float dtype; optional
 * @param options activation: "none" (default), "gelu" (GPT-2's form), "relu" or "silu"
 * @returns [..., outputs] in x's dtype
 * @throws RangeError where shapes disagree, TypeError where dtypes or devices do
 */
export function linear(
  x: Tensor,
  weight: Tensor,
  bias?: Tensor,
  { activation = "none" }: { activation?: Activation } = {},
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
  if (bias && bias.device !== x.device) throw new TypeError("linear: x and bias must be on one device; use copyTo()");
  const wanted = [x, weight, bias].map((t) => isRecording() && t?.requiresGrad === true);
  // A gradient of the activation reads what went into it, which the fused kernel does not keep.
  const after = wanted.includes(true) && activation !== "none" ? activations[activation] : undefined;
  const lead = x.shape.slice(0, -1);
  const rows = x.reshape([lead.reduce((a, b) => a * b, 1), inputs]);
  const product = run(x.device, rows, weight, bias?.contiguous(), after ? "none" : activation);
  const parameters = bias ? [weight, bias] : [weight];
  // out = x·wᵀ + b, so dx = g·w, dw = gᵀ·x and db sums the rows of g.
  record("linear", [rows, ...parameters], [product], [rows, weight], ([g], [xs, w]) => {
    if (!g) return [];
    return [
      wanted[0] ? matmul(g, w) : undefined,
      wanted[1] ? matmul(g.transpose(), xs) : undefined,
      wanted[2] ? sumTo(g, bias!.shape).to(bias!.dtype) : undefined,
    ];
  });
  const output = product.reshape([...lead, weight.shape[0]]);
  return after ? after(output) : output;
}
