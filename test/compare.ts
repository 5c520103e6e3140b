import { expect } from "vitest";
import type { Device } from "../src/devices/device.js";
import type { DType } from "../src/tensor/dtype.js";
import { Generator } from "../src/tensor/random.js";
import { sizeOf } from "../src/tensor/shape.js";
import { fromValues, Scope, type Shape, type Tensor } from "./internal.js";
import { FINITE_DIFFERENCE, TOLERANCE } from "./tolerances.js";

export type Function = (...inputs: Tensor[]) => Tensor;

export interface Inputs {
  shapes: Shape[];
  dtype?: Exclude<DType, "i32">;
  /** Maps standard normal values to what the function takes. */
  value?: (normal: number, input: number) => number;
  seed?: number;
}

type Values = { output: ArrayLike<number>; shape: Shape; grads: ArrayLike<number>[] };

function numbers({ shapes, value = (x) => x, seed = 1 }: Inputs): number[][] {
  const generator = new Generator(seed);
  return shapes.map((shape, k) => Array.from({ length: sizeOf(shape) }, () => value(generator.normal(), k)));
}

/** Output and gradients of all inputs, for a random upstream gradient. */
async function evaluate(device: Device, fn: Function, inputs: Inputs, values: number[][]): Promise<Values> {
  using _ = new Scope();
  const dtype = inputs.dtype ?? "f32";
  const tensors = values.map((list, k) => fromValues(device, list, inputs.shapes[k], dtype, true));
  const out = fn(...tensors);
  const generator = new Generator(99);
  const upstream = Array.from({ length: out.size }, () => generator.normal());
  out.backward(fromValues(device, upstream, out.shape, out.dtype as Exclude<DType, "i32">));
  const grads = await Promise.all(tensors.map((x) => (x.grad ? x.grad.data() : new Float64Array(x.size))));
  for (const x of tensors) x.grad?.dispose();
  return { output: await out.data(), shape: out.shape, grads };
}

/** Compares relative to the largest expected value; infinities and NaN must agree exactly. */
export function expectClose(name: string, got: ArrayLike<number>, want: ArrayLike<number>, tolerance: number): void {
  expect(got.length, `${name}: length`).toBe(want.length);
  let largest = 0;
  for (let k = 0; k < want.length; k++) if (Number.isFinite(want[k])) largest = Math.max(largest, Math.abs(want[k]));
  for (let k = 0; k < want.length; k++) {
    if (Object.is(got[k], want[k]) || got[k] === want[k]) continue;
    const error = Math.abs(got[k] - want[k]);
    if (!(error <= tolerance * largest)) {
      expect.fail(
        `${name}: element ${k} is ${got[k]}, expected ${want[k]} (largest ${largest}, tolerance ${tolerance})`,
      );
    }
  }
}

/** The same computation on a device and on the oracle: outputs and all gradients agree. */
export async function expectLikeOracle(
  device: Device,
  oracle: Device,
  name: string,
  fn: Function,
  inputs: Inputs,
): Promise<void> {
  const dtype = inputs.dtype ?? "f32";
  const values = numbers(inputs);
  const want = await evaluate(oracle, fn, inputs, values);
  const got = await evaluate(device, fn, inputs, values);
  expect(got.shape, `${name}: shape`).toEqual(want.shape);
  expectClose(`${name} output`, got.output, want.output, TOLERANCE.output[dtype]);
  for (const [k, grad] of want.grads.entries()) {
    expectClose(`${name} gradient of input ${k}`, got.grads[k], grad, TOLERANCE.gradient[dtype]);
  }
}

/** The oracle's gradients against central differences of the oracle's outputs. Keep inputs small. */
export async function expectDifferences(oracle: Device, name: string, fn: Function, inputs: Inputs): Promise<void> {
  const values = numbers(inputs);
  for (const list of values) for (const k of list.keys()) list[k] = Math.fround(list[k]);
  const { grads, shape } = await evaluate(oracle, fn, inputs, values);
  const generator = new Generator(99);
  const upstream = Array.from({ length: sizeOf(shape) }, () => Math.fround(generator.normal()));
  const step = 2 ** -12; // exact in f32 around values of ordinary size, as inputs are rounded to it
  const loss = async () => {
    const { output } = await evaluate(oracle, fn, inputs, values);
    return upstream.reduce((sum, g, k) => sum + g * output[k], 0);
  };
  for (const [input, list] of values.entries()) {
    const differences: number[] = [];
    for (const k of list.keys()) {
      const before = list[k];
      const around: number[] = [];
      for (const h of [-2, -1, 1, 2]) {
        list[k] = Math.fround(before + h * step);
        around.push(await loss());
      }
      list[k] = before;
      differences.push((around[0] - 8 * around[1] + 8 * around[2] - around[3]) / (12 * step));
    }
    expectClose(`${name} finite difference of input ${input}`, differences, grads[input], FINITE_DIFFERENCE);
  }
}
