import type { Tensor } from "../../tensor/tensor.js";
import { operation } from "../operation.js";
import * as oracle from "./oracle.js";
import * as wasm from "./wasm.js";
import * as webgpu from "./webgpu.js";

const multiply = operation("mul", {
  oracle: (a: Tensor, b: Tensor) => oracle.mapTwo("mul", a, b),
  wasm: (a: Tensor, b: Tensor) => wasm.mapTwo("mul", a, b),
  webgpu: (a: Tensor, b: Tensor) => webgpu.mapTwo("mul", a, b),
});

/** a · b in a's dtype, where b may be of another float dtype; broadcasts. Not differentiable. */
export function mulMixed(a: Tensor, b: Tensor): Tensor {
  return multiply(a.device, a, b);
}
