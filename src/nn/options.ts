import type { Device } from "../devices/device.js";
import type { DType } from "../tensor/dtype.js";
import { defaultGenerator, type Generator } from "../tensor/random.js";
import { type Shape, sizeOf } from "../tensor/shape.js";
import { fromValues, type Tensor } from "../tensor/tensor.js";
import { parameter } from "./module.js";

/** Where and how a module makes its parameters. */
export interface ModuleOptions {
  device: Device;
  /**
   * Of matrices, and of what is multiplied by them; default "f32". Vectors, the residual stream and gradients of parameters
   * are f32 whatever it is.
   */
  dtype?: DType;
  /** Where initial values come from; default: the shared generator (see `manualSeed`). */
  generator?: Generator;
}

/** A parameter of normal values. */
export function normalParameter(shape: Shape, deviation: number, options: ModuleOptions): Tensor {
  const { device, dtype = "f32", generator = defaultGenerator() } = options;
  const values = new Float32Array(sizeOf(shape));
  for (let k = 0; k < values.length; k++) values[k] = deviation * generator.normal();
  return parameter(fromValues(device, values, shape, dtype, true));
}

/** An f32 parameter of one value everywhere. */
export function constantParameter(shape: Shape, value: number, { device }: ModuleOptions): Tensor {
  return parameter(fromValues(device, new Float32Array(sizeOf(shape)).fill(value), shape, "f32", true));
}
