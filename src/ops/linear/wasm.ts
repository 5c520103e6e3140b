import { wasmDevice } from "../../devices/wasm/device.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { mapTwo, unary } from "../elementwise/wasm.js";
import { multiply } from "../matmul/wasm.js";
import type { LinearEnd, LinearForward } from "./contract.js";
import { FEW_ROWS, linearFewRows } from "./few-rows.js";

export const linearForward: LinearForward = (x, weight, end) => {
  const product = activated(x, weight, end);
  if (!end.residual) return product;
  const output = mapTwo("add", product, end.residual);
  product.dispose();
  return output;
};

function activated(x: Tensor, weight: Tensor, end: LinearEnd): Tensor {
  const { bias, activation, dtype } = end;
  if (x.shape[0] <= FEW_ROWS && x.strides[1] === 1 && weight.strides[1] === 1) return linearFewRows(x, weight, end);
  const output = empty([x.shape[0], weight.shape[0]], x.device, dtype);
  // The same memory, read with exchanged strides.
  const [outputs, inputs] = weight.shape;
  const [outputStep, inputStep] = weight.strides;
  const { storage, offset } = weight;
  const transposed = {
    shape: [inputs, outputs],
    strides: [inputStep, outputStep],
    storage,
    offset,
    dtype: weight.dtype,
  };
  multiply(wasmDevice(x), output, x, transposed, {
    bias,
    activation: activation === "none" ? undefined : { key: activation, write: unary[activation] },
  });
  return output;
}
