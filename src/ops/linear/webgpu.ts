import { map } from "../../devices/webgpu/map.js";
import { empty } from "../../tensor/tensor.js";
import { mapOne } from "../elementwise/webgpu.js";
import { matmul } from "../matmul/webgpu.js";
import type { LinearForward } from "./contract.js";

/** The product, then bias and activation in passes of their own. */
export const linearForward: LinearForward = (x, weight, bias, activation) => {
  const [outputs, inputs] = weight.shape;
  const transposed = weight.detach().permute([1, 0]);
  const product = inputs > 0 ? matmul(x, transposed, []) : empty([x.shape[0], outputs], x.device, x.dtype);
  transposed.dispose();
  let result = product;
  if (bias) {
    result = empty(product.shape, x.device, x.dtype);
    const apply = "fn apply(i: u32) -> f32 { return x_of(i) + bias_of(i); }";
    map(
      "bias",
      result,
      { x: { tensor: product, strides: product.strides }, bias: { tensor: bias, strides: [0, 1] } },
      apply,
    );
    product.dispose();
  }
  if (activation === "none") return result;
  const active = mapOne(activation, result);
  result.dispose();
  return active;
};
