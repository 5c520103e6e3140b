import { afterAll, beforeAll, expect } from "vitest";
import type { Device } from "../src/devices/device.js";
import { getDevice } from "../src/devices/get-device.js";
import type { DType } from "../src/tensor/dtype.js";
import { Generator } from "../src/tensor/random.js";
import { fromValues, type Tensor } from "../src/tensor/tensor.js";

export interface InputSpec {
  shape: readonly number[];
  dtype?: DType;
  /** Default: normal values. */
  values?: ArrayLike<number>;
  /** Default true for floats. */
  grad?: boolean;
}

type Tensors<K extends string> = Record<K, Tensor>;

let wasm: Device;
let single: Device;
let oracle: Device;

/** Call once in a test file: makes the devices that `compare` uses. */
export function useDevices(): { oracle: () => Device; wasm: () => Device } {
  beforeAll(async () => {
    oracle = await getDevice("oracle");
    wasm = await getDevice("wasm", { threads: 2 });
    single = await getDevice("wasm", { threads: 1 });
  });
  afterAll(() => {
    wasm.dispose();
    single.dispose();
  });
  return { oracle: () => oracle, wasm: () => wasm };
}

function makeInputs<K extends string>(specs: Record<K, InputSpec>, device: Device, seed: number): Tensors<K> {
  const generator = new Generator(seed);
  const made = {} as Tensors<K>;
  for (const [name, spec] of Object.entries(specs) as [K, InputSpec][]) {
    const { shape, dtype = "f32", grad = dtype !== "i32" } = spec;
    const size = shape.reduce((a, b) => a * b, 1);
    const values = spec.values ?? Float32Array.from({ length: size }, () => generator.normal());
    made[name] = fromValues(device, values, shape, dtype, grad);
  }
  return made;
}

/** Outputs and the gradients of all inputs under a random upstream gradient, by name. */
async function evaluate<K extends string>(
  specs: Record<K, InputSpec>,
  run: (inputs: Tensors<K>) => Tensor,
  device: Device,
): Promise<Record<string, number[]>> {
  const inputs = makeInputs(specs, device, 1);
  const out = run(inputs);
  const results: Record<string, number[]> = { output: [...(await out.data())] };
  if (out.requiresGrad) {
    const generator = new Generator(2);
    const upstream = Float32Array.from({ length: out.size }, () => generator.normal());
    out.backward(fromValues(device, upstream, out.shape, out.dtype));
    for (const [name, input] of Object.entries(inputs) as [string, Tensor][]) {
      if (input.requiresGrad) results[`d(${name})`] = [...(await input.grad!.data())];
    }
  }
  return results;
}

/** The largest difference relative to the largest value expected; infinite where a value is not a number. */
export function worst(got: readonly number[], want: readonly number[]): number {
  expect(got.length).toBe(want.length);
  const top = want.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-30);
  return got.reduce((a, x, k) => {
    const difference = Math.abs(x - want[k]) / top;
    return Math.max(a, Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference);
  }, 0);
}

const TOLERANCE: Record<DType, number> = { f32: 3e-6, f16: 3e-3, bf16: 2e-2, i32: 0 };

/**
 * The same operation on oracle and wasm: outputs and all gradients, and wasm's the same bit for bit with one thread and
 * with two.
 */
export async function compare<K extends string>(
  specs: Record<K, InputSpec>,
  run: (inputs: Tensors<K>) => Tensor,
  tolerance?: number,
): Promise<void> {
  const want = await evaluate(specs, run, oracle);
  const got = await evaluate(specs, run, wasm);
  const limits = (Object.values(specs) as InputSpec[]).map(({ dtype = "f32" }) => TOLERANCE[dtype]);
  const limit = tolerance ?? Math.max(...limits);
  expect(Object.keys(got)).toEqual(Object.keys(want));
  for (const [name, values] of Object.entries(want)) {
    expect(worst(got[name], values), `${name} on wasm against the oracle`).toBeLessThanOrEqual(limit);
  }
  const alone = await evaluate(specs, run, single);
  for (const [name, values] of Object.entries(got)) {
    const different = values.findIndex((x, k) => !Object.is(x, alone[name][k]));
    expect(different, `${name}: first element that one thread computes differently`).toBe(-1);
  }
}

/** The oracle's gradients against central differences of its outputs, for the inputs that want gradients. */
export async function checkGradients<K extends string>(
  specs: Record<K, InputSpec>,
  run: (inputs: Tensors<K>) => Tensor,
): Promise<void> {
  const analytic = await evaluate(specs, run, oracle);
  const base = makeInputs(specs, oracle, 1);
  const generator = new Generator(2);
  const upstream = Float64Array.from(analytic["output"], () => Math.fround(generator.normal()));
  for (const [name, spec] of Object.entries(specs) as [K, InputSpec][]) {
    if (!base[name].requiresGrad) continue;
    const values = [...(await base[name].data())];
    const expected = analytic[`d(${name})`];
    const top = expected.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-3);
    for (let k = 0; k < values.length; k++) {
      const [high, low] = await Promise.all(
        [2 ** -8, -(2 ** -8)].map(async (step) => {
          // What is written is rounded to f32, so the distance is that of what was written.
          const at = Math.fround(values[k] + step);
          const moved = fromValues(oracle, values.with(k, at), spec.shape, "f32");
          const out = [...(await run({ ...base, [name]: moved }).data())];
          return { at, sum: out.reduce((sum, y, j) => sum + y * upstream[j], 0) };
        }),
      );
      const numeric = (high.sum - low.sum) / (high.at - low.at);
      expect(Math.abs(numeric - expected[k]) / top, `d(${name})[${k}]`).toBeLessThan(2e-3);
    }
  }
}
