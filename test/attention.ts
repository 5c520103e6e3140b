import { expect } from "vitest";
import type { Device } from "../src/devices/device.js";
import { fromOracleValues, OracleDevice } from "../src/devices/oracle.js";
import { expandedDim } from "../src/feature-map.js";
import type { PowerOptions } from "../src/options.js";
import { powerFull } from "../src/power-attention.js";
import { ones, tensor, zeros } from "../src/tensor/create.js";
import { type DType, roundTo } from "../src/tensor/dtype.js";
import { Generator } from "../src/tensor/random.js";
import { sizeOf } from "../src/tensor/shape.js";
import { record } from "../src/tensor/tape.js";
import type { Tensor } from "../src/tensor/tensor.js";

/** A problem: dimensions by their names, and the options that are not tensors. */
export interface Problem {
  batch: number;
  time: number;
  queryHeads: number;
  heads: number;
  headDim: number;
  valueDim: number;
  degree: number;
  gated?: boolean;
  /** Pass an initial state. */
  initial?: boolean;
  /** Ask for the final state, and send gradients through it. */
  final?: boolean;
  options?: Pick<PowerOptions, "scale" | "chunkSize" | "normalize">;
  dtype?: Exclude<DType, "i32">;
  seed?: number;
}

export interface Arrays {
  [name: string]: { shape: number[]; values: Float64Array; dtype: DType };
}

function normal(generator: Generator, shape: number[], dtype: DType, scale = 1) {
  const values = Float64Array.from({ length: sizeOf(shape) }, () => roundTo(dtype, scale * generator.normal()));
  return { shape, values, dtype };
}

/** Random inputs q k v [logG] [s z], already rounded to their dtypes, and gradients dOutput [dS dZ] to send back. */
export function randomInputs(problem: Problem): { inputs: Arrays; upstream: Arrays } {
  const { batch: B, time: T, queryHeads: Hq, heads: H, headDim: d, valueDim: e, degree } = problem;
  const { dtype = "f32", seed = 1 } = problem;
  const g = new Generator(seed);
  const inputs: Arrays = {
    q: normal(g, [B, T, Hq, d], dtype),
    k: normal(g, [B, T, H, d], dtype),
    v: normal(g, [B, T, H, e], dtype),
  };
  if (problem.gated) {
    const { shape, values } = normal(g, [B, T, H], "f32");
    inputs.logG = { shape, values: values.map((x) => roundTo("f32", -Math.log1p(Math.exp(-x)))), dtype: "f32" };
  }
  const upstream: Arrays = { output: normal(g, [B, T, Hq, e], dtype) };
  if (problem.initial || problem.final) {
    const D = expandedDim(d, degree);
    if (problem.initial) {
      inputs.s = normal(g, [B, H, D, e], "f32");
      // A sum near 0 would make every comparison one of rounding errors: the state of a few real keys.
      const { s, z } = stateOfKeys(g, B, H, d, e, degree);
      inputs.s.values = s;
      inputs.z = { shape: [B, H, D], values: z, dtype: "f32" };
    }
    if (problem.final) {
      upstream.s = normal(g, [B, H, D, e], "f32");
      upstream.z = normal(g, [B, H, D], "f32");
    }
  }
  return { inputs, upstream };
}

function stateOfKeys(g: Generator, B: number, H: number, d: number, e: number, degree: number) {
  const device = new OracleDevice();
  const like = { device, dtype: "f32" } as const;
  const draw = (shape: number[]) => fromOracleValues(like, shape, normal(g, shape, "f32").values);
  const k = draw([B, 3, H, d]);
  const { finalState } = powerFull(k, k, draw([B, 3, H, e]), { degree, normalize: "none", returnFinalState: true });
  const read = (x: Tensor) => Float64Array.from(device.readNow(x.storage, 0, x.size), (v) => roundTo("f32", v));
  const [s, z] = [read(finalState.s), read(finalState.z)];
  return { s, z };
}

/** Sends `upstream[k]` into `outputs[k]`, all in one backward. */
export function backwardAll(outputs: Tensor[], upstream: Tensor[]): void {
  const { device } = outputs[0];
  const root = zeros([], { device });
  record("test", outputs, [root], [], () => upstream.map((u) => u.detach()));
  root.backward(ones([], { device }));
}

/** Leaves freed NaN in the memory that the next operations get; the oracle's is always new. */
export function poison(device: Device): void {
  if (device.kind === "oracle") return;
  const blocks = [100, 1_000, 10_000, 100_000, 1_000_000].map((length) =>
    tensor(new Float32Array(length).fill(Number.NaN), [length], { device }),
  );
  for (const block of blocks) block.dispose();
}

export function place(device: Device, arrays: Arrays, requiresGrad = false): Record<string, Tensor> {
  return Object.fromEntries(
    Object.entries(arrays).map(([name, { shape, values, dtype }]) => [
      name,
      tensor(values, shape, { device, dtype, requiresGrad }),
    ]),
  );
}

/** Outputs `output [s z]` and gradients `dq dk dv [dlogG ds dz]` of a problem on a device. */
export async function solve(
  device: Device,
  problem: Problem,
  arrays = randomInputs(problem),
): Promise<Record<string, ArrayLike<number>>> {
  const x = place(device, arrays.inputs, true);
  const up = place(device, arrays.upstream);
  poison(device);
  const result = powerFull(x.q, x.k, x.v, {
    degree: problem.degree,
    logG: x.logG,
    initialState: x.s && { s: x.s, z: x.z },
    returnFinalState: problem.final ?? false,
    ...problem.options,
  });
  const outs: Record<string, Tensor> =
    "finalState" in result
      ? { output: result.output, s: result.finalState.s, z: result.finalState.z }
      : { output: result as Tensor };
  const found: Record<string, ArrayLike<number>> = {};
  for (const [name, out] of Object.entries(outs)) found[name] = await out.data();
  poison(device);
  backwardAll(
    Object.values(outs),
    Object.keys(outs).map((name) => up[name]),
  );
  for (const [name, input] of Object.entries(x)) {
    expect(input.grad?.dtype, `d${name} has ${name}'s dtype`).toBe(input.dtype);
    expect(input.grad?.shape).toEqual(input.shape);
    found[`d${name}`] = await input.grad!.data();
  }
  return found;
}

function largest(values: ArrayLike<number>): number {
  let most = 0;
  for (let n = 0; n < values.length; n++) most = Math.max(most, Math.abs(values[n]));
  return most;
}

/** The largest difference relative to the largest expected value, or to `floor` where that is more. */
export function worstError(actual: ArrayLike<number>, expected: ArrayLike<number>, floor = 0): number {
  if (actual.length !== expected.length) return Number.POSITIVE_INFINITY;
  let difference = 0;
  for (let n = 0; n < expected.length; n++) {
    const off = Math.abs(actual[n] - expected[n]);
    if (!(off < Number.POSITIVE_INFINITY)) return Number.POSITIVE_INFINITY;
    difference = Math.max(difference, off);
  }
  return difference === 0 ? 0 : difference / Math.max(largest(expected), floor, Number.MIN_VALUE);
}

export function expectClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: number,
  what: string,
  floor = 0,
): void {
  const error = worstError(actual, expected, floor);
  expect(error, `${what}: worst error relative to the largest value`).toBeLessThanOrEqual(tolerance);
}

/**
 * Checks all of what `solve` found. Normalisation can cancel the gradients of q, k and logG down to rounding errors (a
 * first token's are 0), so theirs count relative to dv where that is larger.
 */
export function expectSame(
  actual: Record<string, ArrayLike<number>>,
  expected: Record<string, ArrayLike<number>>,
  tolerance: (name: string) => number,
): void {
  expect(Object.keys(actual).sort()).toEqual(Object.keys(expected).sort());
  for (const name of Object.keys(expected)) {
    const floor = ["dq", "dk", "dlogG"].includes(name) ? largest(expected.dv ?? []) : 0;
    expectClose(actual[name], expected[name], tolerance(name), name, floor);
  }
}

/** A tensor of exact float64 values on an oracle device. */
export function exact(device: OracleDevice, shape: number[], values: Float64Array, requiresGrad = false): Tensor {
  const out = fromOracleValues({ device, dtype: "f32" }, shape, values);
  return Object.assign(out, { requiresGrad });
}

/**
 * Compares the gradients of Σ outputs · upstream against central differences in float64, for every element of every
 * input.
 */
export async function checkGradients(
  inputs: Arrays,
  upstream: Arrays,
  run: (x: Record<string, Tensor>) => Record<string, Tensor>,
  tolerance: number,
): Promise<void> {
  const device = new OracleDevice();
  const put = (values: Record<string, Float64Array>, requiresGrad: boolean) =>
    Object.fromEntries(
      Object.entries(inputs).map(([name, { shape }]) => [name, exact(device, shape, values[name], requiresGrad)]),
    );
  const values = Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, input.values]));
  const loss = () => {
    const outs = run(put(values, false));
    let sum = 0;
    for (const [name, out] of Object.entries(outs)) {
      const got = device.readNow(out.storage, 0, out.size);
      for (let n = 0; n < got.length; n++) sum += got[n] * upstream[name].values[n];
    }
    return sum;
  };
  const x = put(values, true);
  const outs = run(x);
  backwardAll(
    Object.values(outs),
    Object.keys(outs).map((name) => exact(device, upstream[name].shape, upstream[name].values)),
  );
  const step = 1e-5;
  for (const name of Object.keys(inputs)) {
    const numeric = new Float64Array(values[name].length);
    for (let n = 0; n < numeric.length; n++) {
      const at = values[name][n];
      values[name][n] = at + step;
      const above = loss();
      values[name][n] = at - step;
      const below = loss();
      values[name][n] = at;
      numeric[n] = (above - below) / (2 * step);
    }
    expectClose(await x[name].grad!.data(), numeric, tolerance, `gradient of ${name}`);
  }
}
