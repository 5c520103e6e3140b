import type { DType } from "../../tensor/dtype.js";
import type { Tensor } from "../../tensor/tensor.js";
import { operation } from "../operation.js";
import * as oracle from "./oracle.js";
import * as wasm from "./wasm.js";
import * as webgpu from "./webgpu.js";

type Options = [axes: readonly number[], factor: number, dtype?: DType];

/** Sum over axes, which keep extent 1, times a factor, in any float dtype (default x's). Not differentiable. */
export const sumOver = operation("sum", {
  oracle: (x: Tensor, ...rest: Options) => oracle.reduce("sum", x, ...rest),
  wasm: (x: Tensor, ...rest: Options) => wasm.reduce("sum", x, ...rest),
  webgpu: (x: Tensor, ...rest: Options) => webgpu.reduce("sum", x, ...rest),
});

/** Sums of the columns of g [rows, n]: [n], in f32 whatever g is. Not differentiable. */
export function columnSums(g: Tensor): Tensor {
  return sumOver(g.device, g, [0], 1, "f32").reshape([g.shape[1]]);
}
