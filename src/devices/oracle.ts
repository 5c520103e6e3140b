import { type DType, roundTo, type TypedArray } from "../tensor/dtype.js";
import { empty, type Tensor } from "../tensor/tensor.js";
import { Device, type DeviceMemory, Storage } from "./device.js";

class OracleStorage extends Storage {
  readonly values: Float64Array;

  constructor(
    readonly device: OracleDevice,
    readonly dtype: DType,
    readonly length: number,
  ) {
    super();
    this.values = new Float64Array(length);
  }

  protected override free(): void {
    this.device.freed(this.values.byteLength);
  }
}

/**
 * The truth: plain TypeScript in float64. Values written from outside are rounded to the tensor's dtype, so that all
 * devices start from the same numbers; what operations compute is kept in float64 whatever the dtype says.
 */
export class OracleDevice extends Device {
  readonly kind = "oracle";
  readonly description = "oracle (float64, one thread)";
  #used = 0;
  #peak = 0;

  constructor(override readonly check = false) {
    super();
  }

  allocate(dtype: DType, length: number): Storage {
    this.#used += 8 * length;
    this.#peak = Math.max(this.#peak, this.#used);
    return new OracleStorage(this, dtype, length);
  }

  freed(bytes: number): void {
    this.#used -= bytes;
  }

  write(storage: Storage, values: ArrayLike<number>): void {
    const target = (storage as OracleStorage).values;
    for (let k = 0; k < values.length; k++) target[k] = roundTo(storage.dtype, values[k]);
  }

  async read(storage: Storage, offset: number, length: number): Promise<TypedArray> {
    return this.readNow(storage, offset, length);
  }

  override readNow(storage: Storage, offset: number, length: number): TypedArray {
    const values = (storage as OracleStorage).values.slice(offset, offset + length);
    return storage.dtype === "i32" ? Int32Array.from(values) : values;
  }

  async sync(): Promise<void> {}

  assertNumbers(operation: string, storage: Storage): void {
    const at = (storage as OracleStorage).values.findIndex(Number.isNaN);
    if (at >= 0) throw new Error(`${operation}: produced a NaN (element ${at} of ${storage.length})`);
  }

  memory(): DeviceMemory {
    return { used: this.#used, peak: this.#peak, reserved: this.#used };
  }

  resetPeak(): void {
    this.#peak = this.#used;
  }

  dispose(): void {}
}

/** An oracle tensor's values in row-major order; the storage itself where the tensor is contiguous from its start. */
export function valuesOf(tensor: Tensor): Float64Array {
  const { values } = tensor.storage as OracleStorage;
  const { shape, strides, offset, size } = tensor;
  if (tensor.isContiguous) return values.subarray(offset, offset + size);
  const out = new Float64Array(size);
  const index = new Array<number>(shape.length).fill(0);
  let at = offset;
  for (let k = 0; k < size; k++) {
    out[k] = values[at];
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      at += strides[axis];
      if (++index[axis] < shape[axis]) break;
      at -= index[axis] * strides[axis];
      index[axis] = 0;
    }
  }
  return out;
}

/** An oracle tensor that takes over `values`, unrounded. */
export function fromOracleValues(
  like: { device: Device; dtype: DType },
  shape: readonly number[],
  values: Float64Array,
): Tensor {
  const tensor = empty(shape, like.device, like.dtype);
  (tensor.storage as OracleStorage).values.set(values);
  return tensor;
}

/** An oracle tensor of zeros and its values, to be filled in place in row-major order. */
export function oracleOutput(
  like: { device: Device; dtype: DType },
  shape: readonly number[],
): { tensor: Tensor; values: Float64Array } {
  const tensor = empty(shape, like.device, like.dtype);
  return { tensor, values: (tensor.storage as OracleStorage).values };
}
