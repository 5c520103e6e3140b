import { WebGpuDevice } from "../../src/devices/webgpu/device.js";
import { type Device, type DType, Generator, gpuBuffer, Tensor, tensor } from "../../src/index.js";
import { toBF16Bits } from "../../src/tensor/dtype.js";
import { empty } from "../../src/tensor/tensor.js";
import type { Shape } from "../arithmetic.js";
import { clearGradients, type Inputs } from "../context.js";

const TABLE_BITS = 16;
let table: Float32Array | undefined;

/** 65,536 standard normal values to draw from. */
function normalTable(): Float32Array {
  table ??= new Generator(11).fillNormal(new Float32Array(2 ** TABLE_BITS));
  return table;
}

/** Draws from a table of 65,536 entries, two for each word of a xorshift generator. */
function draw<A extends Float32Array | Uint16Array>(out: A, from: A, seed: number): A {
  let word = Math.imul(seed + 1, 0x9e3779b1) | 1;
  for (let k = 0; k < out.length; k += 2) {
    word ^= word << 13;
    word ^= word >>> 17;
    word ^= word << 5;
    out[k] = from[word >>> TABLE_BITS];
    out[k + 1] = from[word & (2 ** TABLE_BITS - 1)]; // one past the end of an odd length is ignored
  }
  return out;
}

/**
 * Standard normal values from a table: tens of millions of them in a tenth of a second. For timing; their sum is not
 * exactly the distribution's.
 */
export function fastNormals(length: number, seed: number): Float32Array {
  return draw(new Float32Array(length), normalTable(), seed);
}

/** The same values as the bits of bf16. */
export function fastBF16(length: number, seed: number): Uint16Array {
  return draw(new Uint16Array(length), Uint16Array.from(normalTable(), toBF16Bits), seed);
}

/** A tensor of `fastNormals`. On a GPU the bits of bf16 go there as they are: converting them would take seconds. */
function normals(device: Device, shape: number[], seed: number, options: FastOptions, requiresGrad: boolean): Tensor {
  const { dtype, rounded = false } = options;
  const size = shape.reduce((a, b) => a * b, 1);
  if (!(device instanceof WebGpuDevice) || dtype !== "bf16" || size % 2 === 1) {
    const values = fastNormals(size, seed);
    return tensor(rounded ? roundToBF16(values) : values, shape, { device, dtype, requiresGrad });
  }
  const made = empty(shape, device, dtype);
  const { buffer, byteOffset } = gpuBuffer(made); // submits whatever used the buffer before
  device.gpu.queue.writeBuffer(buffer, byteOffset, fastBF16(size, seed) as Uint16Array<ArrayBuffer>);
  device.gpu.queue.submit([]);
  const leaf = new Tensor(made.storage.retain(), made.shape, made.strides, made.offset, { requiresGrad });
  made.dispose();
  return leaf;
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
  const { requiresGrad, gateBias = 2, seed = 1 } = options;
  const make = (extents: number[], offset: number, leaf: boolean) =>
    normals(device, extents, seed + offset, options, leaf);
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
