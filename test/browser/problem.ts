/** The problem that pages solve on a device, and how far two solutions are apart. */
import { type Device, type DType, type PowerOptions, powerFull, randn, type Tensor } from "../../src/index.js";

const [batch, time, queryHeads, heads, headDim, valueDim] = [2, 150, 4, 2, 16, 8];

export interface Inputs {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  logG: Tensor;
}

/** Grouped heads, gated, and a time that is no multiple of anything; the same values on every device. */
export function inputsOn(device: Device, dtype: DType = "f32"): Inputs {
  const place = (shape: number[], seed: number, as: DType = dtype) =>
    randn(shape, { device, dtype: as, requiresGrad: true, seed });
  return {
    q: place([batch, time, queryHeads, headDim], 1),
    k: place([batch, time, heads, headDim], 2),
    v: place([batch, time, heads, valueDim], 3),
    logG: place([batch, time, heads], 4, "f32"),
  };
}

/** Logs of gates below 1. */
export function gatesOf({ logG }: Inputs): Tensor {
  return logG.mul(logG).mul(-0.1);
}

/** The output, and the gradients of all inputs for a random upstream one. */
export async function solve(
  inputs: Partial<Inputs>,
  run: (inputs: Inputs) => Tensor,
): Promise<{ output: ArrayLike<number>; gradients: ArrayLike<number>[] }> {
  const out = run(inputs as Inputs);
  out.backward(randn(out.shape, { device: out.device, dtype: out.dtype, seed: 5 }));
  const grads = Object.values(inputs).map((x: Tensor) => x.grad!.data());
  return { output: await out.data(), gradients: await Promise.all(grads) };
}

export function attend(inputs: Inputs, options: PowerOptions): Tensor {
  return powerFull(inputs.q, inputs.k, inputs.v, { ...options, logG: gatesOf(inputs), returnFinalState: false });
}

/** The largest difference relative to the largest value wanted; NaN where any value is not a number. */
export function difference(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) return Number.NaN;
  let largest = 0;
  let error = 0;
  for (let k = 0; k < want.length; k++) {
    largest = Math.max(largest, Math.abs(want[k]));
    error = Math.max(error, Math.abs(got[k] - want[k]));
  }
  return error / largest;
}

export interface Errors {
  output: number;
  gradient: number;
}

export function errorsOf(got: Awaited<ReturnType<typeof solve>>, want: Awaited<ReturnType<typeof solve>>): Errors {
  const gradients = got.gradients.map((values, k) => difference(values, want.gradients[k]));
  return { output: difference(got.output, want.output), gradient: Math.max(...gradients) };
}
