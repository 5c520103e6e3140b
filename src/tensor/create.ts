import type { Device } from "../devices/device.js";
import type { DType } from "./dtype.js";
import { defaultGenerator, Generator } from "./random.js";
import { checkShape, type Shape, sizeOf } from "./shape.js";
import { fromValues, type Tensor } from "./tensor.js";

export interface TensorOptions {
  device: Device;
  /** Default "f32". */
  dtype?: DType;
  /** Record what is done with the tensor, for `backward`. Default false. Not for i32. */
  requiresGrad?: boolean;
}

export interface RandomOptions extends TensorOptions {
  /** A seed, or a generator that goes on where it was. Default: the shared generator (see `manualSeed`). */
  seed?: number | Generator;
}

type Nested = number | readonly Nested[];

function check(caller: string, shape: Shape, options: TensorOptions): Required<TensorOptions> {
  const { device, dtype = "f32", requiresGrad = false } = options ?? {};
  if (!device) throw new TypeError(`${caller}: a device is needed; pass { device: await getDevice() }`);
  if (!["f32", "f16", "bf16", "i32"].includes(dtype)) {
    throw new RangeError(`${caller}: dtype must be "f32", "f16", "bf16" or "i32", got ${JSON.stringify(dtype)}`);
  }
  if (requiresGrad && dtype === "i32")
    throw new TypeError(`${caller}: i32 tensors have no gradient; use a float dtype`);
  checkShape(caller, shape);
  return { device, dtype, requiresGrad };
}

function shapeOf(caller: string, data: Nested): number[] {
  if (typeof data === "number") return [];
  if (data.length === 0) return [0];
  const inner = shapeOf(caller, data[0]);
  for (const row of data) {
    if (shapeOf(caller, row).join() !== inner.join())
      throw new RangeError(`${caller}: nested arrays must have equal lengths`);
  }
  return [data.length, ...inner];
}

/**
 * A tensor of given values.
 * @param data a typed array or a (nested) array of numbers, rounded to the dtype
 * @param shape default: the nesting of `data`
 * @throws RangeError where the number of values is not the shape's
 */
export function tensor(data: Nested | ArrayLike<number>, shape: Shape | undefined, options: TensorOptions): Tensor {
  const nested = Array.isArray(data) || typeof data === "number";
  const values = nested ? ([data].flat(Number.POSITIVE_INFINITY) as number[]) : (data as ArrayLike<number>);
  const extents = shape ?? (nested ? shapeOf("tensor", data as Nested) : [values.length]);
  const { device, dtype, requiresGrad } = check("tensor", extents, options);
  if (values.length !== sizeOf(extents)) {
    throw new RangeError(`tensor: shape [${extents.join(", ")}] takes ${sizeOf(extents)} values, got ${values.length}`);
  }
  return fromValues(device, values, extents, dtype, requiresGrad);
}

function generated(caller: string, shape: Shape, options: TensorOptions, next: () => number): Tensor {
  const { device, dtype, requiresGrad } = check(caller, shape, options);
  const values = new Float32Array(sizeOf(shape));
  for (let k = 0; k < values.length; k++) values[k] = next();
  return fromValues(device, values, shape, dtype, requiresGrad);
}

export function zeros(shape: Shape, options: TensorOptions): Tensor {
  return generated("zeros", shape, options, () => 0);
}

export function ones(shape: Shape, options: TensorOptions): Tensor {
  return generated("ones", shape, options, () => 1);
}

function generatorOf(seed: number | Generator | undefined): Generator {
  if (seed instanceof Generator) return seed;
  return seed === undefined ? defaultGenerator() : new Generator(seed);
}

/** Standard normal values, the same on every device for the same seed. */
export function randn(shape: Shape, options: RandomOptions): Tensor {
  const generator = generatorOf(options?.seed);
  const { device, dtype, requiresGrad } = check("randn", shape, options);
  return fromValues(device, generator.fillNormal(new Float32Array(sizeOf(shape))), shape, dtype, requiresGrad);
}

/** Values uniform in [low, high). */
export function uniform(shape: Shape, options: RandomOptions & { low?: number; high?: number }): Tensor {
  const generator = generatorOf(options?.seed);
  const { low = 0, high = 1 } = options ?? {};
  return generated("uniform", shape, options, () => low + (high - low) * generator.uniform());
}
