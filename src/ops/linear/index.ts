import type { Tensor } from "../../tensor/tensor.js";
import { add, gelu, relu, silu } from "../elementwise/index.js";
import { matmul } from "../matmul/index.js";

export type Activation = "none" | "gelu" | "relu" | "silu";

export function linear(
  x: Tensor,
  weight: Tensor,
  bias?: Tensor,
  { activation = "none" }: { activation?: Activation } = {},
): Tensor {
  const product = matmul(x, weight.transpose());
  const sum = bias ? add(product, bias) : product;
  return activation === "none" ? sum : { gelu, relu, silu }[activation](sum);
}
