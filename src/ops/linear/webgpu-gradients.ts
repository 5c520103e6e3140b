import type { DType } from "../../tensor/dtype.js";
import { noGrad } from "../../tensor/tape.js";
import { scope, type Tensor } from "../../tensor/tensor.js";
import { matmul } from "../matmul/webgpu.js";
import { reduce } from "../reduce/webgpu.js";
import { wholeOctets } from "./webgpu-octets.js";

/** Workgroups that keep a large GPU busy. */
const ENOUGH = 512;
/** Tokens in a part, at least: fewer would make more partial sums than products. */
const LEAST = 512;

/** Parts that the tokens are shared out to. */
function partsFor(tokens: number, outputs: number, inputs: number): number {
  const tiles = Math.ceil(outputs / 128) * Math.ceil(inputs / 128);
  let parts = 1;
  while (tiles * parts < ENOUGH && tokens % (2 * parts) === 0 && tokens / (2 * parts) >= LEAST) parts *= 2;
  return parts;
}

/**
 * gᵀ · x, [outputs, inputs], over all tokens: few results, each a long sum. One workgroup for each tile of results would
 * leave most of a GPU idle, so parts of the tokens are summed apart, and their sums added up.
 */
export function weightGradient(g: Tensor, x: Tensor, dtype: DType): Tensor {
  return noGrad(() =>
    scope(() => {
      const [tokens, outputs] = g.shape;
      const whole = wholeOctets(g, 1);
      const [width, inputs] = [whole.shape[1], x.shape[1]];
      const parts = partsFor(tokens, width, inputs);
      if (parts === 1) return matmul(whole.transpose(), x, [], dtype).slice(0, 0, outputs);
      const split = (t: Tensor, columns: number) => t.reshape([parts, tokens / parts, columns]);
      const sums = matmul(split(whole, width).transpose(), split(x, inputs), [parts], "f32");
      return reduce("sum", sums, [0], 1, dtype).reshape([width, inputs]).slice(0, 0, outputs);
    }),
  );
}

/** g · weight, [tokens, inputs]. */
export function inputGradient(g: Tensor, weight: Tensor): Tensor {
  return noGrad(() => scope(() => matmul(wholeOctets(g, 1), wholeOctets(weight, 0), [])));
}
