import { type Device, type DType, Generator, tensor } from "../../src/index.js";
import type { Shape } from "../arithmetic.js";
import { clearGradients, type Inputs } from "../context.js";

const TABLE_BITS = 16;
let table: Float32Array | undefined;

/** 65,536 standard normal values to draw from. */
function normalTable(): Float32Array {
  table ??= new Generator(11).fillNormal(new Float32Array(2 ** TABLE_BITS));
  return table;
}

/**
 * Standard normal values, drawn from a table with the halves of a xorshift word: tens of millions of them take a tenth
 * of a second. For timing; their sum is not exactly the distribution's.
 */
export function fastNormals(length: number, seed: number): Float32Array {
  const values = normalTable();
  const out = new Float32Array(length);
  let word = Math.imul(seed + 1, 0x9e3779b1) | 1;
  for (let k = 0; k < length; k += 2) {
    word ^= word << 13;
    word ^= word >>> 17;
    word ^= word << 5;
    out[k] = values[word >>> TABLE_BITS];
    out[k + 1] = values[word & (2 ** TABLE_BITS - 1)]; // one past the end of an odd length is ignored
  }
  return out;
}

/** A generator whose normal values come from the same table: weights of a large model in seconds. */
export class FastGenerator extends Generator {
  override normal(): number {
    return normalTable()[this.bits() >>> TABLE_BITS];
  }
}

/** log of sigmoid(normal + bias), in a narrow range around that of `bias`. */
export function fastGates(length: number, seed: number, bias: number): Float32Array {
  const out = fastNormals(length, seed);
  for (let k = 0; k < length; k++) out[k] = -Math.log1p(Math.exp(-(out[k] + bias)));
  return out;
}

export interface FastOptions {
  dtype: DType;
  requiresGrad: boolean;
  /** Of the gates: sigmoid(2) = 0.88, sigmoid(6.9) = 0.999. Default 2, as elsewhere in the benchmark. */
  gateBias?: number;
  seed?: number;
  /** Values that bf16 holds, whatever the dtype: the same problem for a device that computes in f32. Default false. */
  rounded?: boolean;
}

/** To the nearest bf16, ties to even, in place. */
export function roundToBF16(values: Float32Array): Float32Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let k = 0; k < bits.length; k++) bits[k] = (bits[k] + 0x7fff + ((bits[k] >>> 16) & 1)) & 0xffff0000;
  return values;
}

/** Inputs like those of `makeInputs`, in any dtype, in a fraction of the time. */
export function fastInputs(device: Device, shape: Omit<Shape, "degree" | "chunkSize">, options: FastOptions): Inputs {
  const { batch: B, tokens: T, queryHeads, heads: H, headDim: d, valueDim: e } = shape;
  const { dtype, requiresGrad, gateBias = 2, seed = 1, rounded = false } = options;
  const make = (extents: number[], offset: number, leaf: boolean) => {
    const size = extents.reduce((a, b) => a * b, 1);
    const values = fastNormals(size, seed + offset);
    return tensor(rounded ? roundToBF16(values) : values, extents, { device, dtype, requiresGrad: leaf });
  };
  const inputs = {
    q: make([B, T, queryHeads, d], 0, requiresGrad),
    k: make([B, T, H, d], 1, requiresGrad),
    v: make([B, T, H, e], 2, requiresGrad),
    logG: tensor(fastGates(B * T * H, seed + 3, gateBias), [B, T, H], { device, requiresGrad }),
    upstream: make([B, T, queryHeads, e], 4, false),
  };
  return {
    ...inputs,
    dispose: () => {
      clearGradients(inputs);
      for (const input of Object.values(inputs)) input.dispose();
    },
  };
}
