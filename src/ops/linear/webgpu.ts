import { map } from "../../devices/webgpu/map.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { activationText } from "../elementwise/webgpu.js";
import { matmul } from "../matmul/webgpu.js";
import type { LinearForward } from "./contract.js";
import { fitsFewRows, linearFewRows } from "./webgpu-few-rows.js";
import { wholeOctets } from "./webgpu-octets.js";

/** The product, then bias, activation and residual in one pass over it; a few rows have a kernel that does all at once. */
export const linearForward: LinearForward = (x, weight, end) => {
  const { bias, activation, residual, dtype } = end;
  if (fitsFewRows(x, weight)) return linearFewRows(x, [{ weight, ...end }])[0];
  const [outputs] = weight.shape;
  const whole = wholeOctets(weight, 0);
  const [columns] = whole.shape;
  const transposed = whole.detach().permute([1, 0]);
  const plain = !bias && !residual && activation === "none" && columns === outputs;
  const product = matmul(x, transposed, [], plain ? dtype : x.dtype);
  transposed.dispose();
  if (whole !== weight) whole.dispose();
  if (plain) return product;
  const result = empty([x.shape[0], outputs], x.device, dtype);
  const given = (tensor: Tensor | undefined, strides: number[]) => tensor && { tensor, strides };
  const inputsOf = Object.entries({
    x: given(product, [columns, 1]),
    bias: given(bias, [0, 1]),
    residual: given(residual, [outputs, 1]),
  }).filter((entry): entry is [string, { tensor: Tensor; strides: number[] }] => entry[1] !== undefined);
  const sum = bias ? "x_of(i) + bias_of(i)" : "x_of(i)";
  const apply = `${activationText(activation)}
fn apply(i: u32) -> f32 { return ${residual ? "residual_of(i) + " : ""}activate0(${sum}); }`;
  map(`linear-end-${activation}`, result, Object.fromEntries(inputsOf), apply);
  product.dispose();
  return result;
};
