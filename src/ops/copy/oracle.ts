import type { Device } from "../../devices/device.js";
import { fromOracleValues, oracleOutput, valuesOf } from "../../devices/oracle.js";
import type { DType } from "../../tensor/dtype.js";
import { type Shape, sizeOf } from "../../tensor/shape.js";
import type { Tensor } from "../../tensor/tensor.js";

export function contiguous(x: Tensor): Tensor {
  return fromOracleValues(x, x.shape, valuesOf(x));
}

export function full(shape: Shape, value: number, like: { device: Device; dtype: DType }): Tensor {
  const { tensor, values } = oracleOutput(like, shape);
  values.fill(value);
  return tensor;
}

export function pad(x: Tensor, axis: number, before: number, after: number): Tensor {
  const extent = x.shape[axis];
  const shape = x.shape.map((n, k) => (k === axis ? before + n + after : n));
  const { tensor, values } = oracleOutput(x, shape);
  const inner = sizeOf(x.shape.slice(axis + 1));
  for (const [k, value] of valuesOf(x).entries()) {
    const row = Math.floor(k / (extent * inner));
    values[k + row * (before + after) * inner + before * inner] = value;
  }
  return tensor;
}

export function concat(list: readonly Tensor[], axis: number): Tensor {
  const extent = list.reduce((n, x) => n + x.shape[axis], 0);
  const shape = list[0].shape.map((n, k) => (k === axis ? extent : n));
  const { tensor, values } = oracleOutput(list[0], shape);
  const inner = sizeOf(shape.slice(axis + 1));
  let start = 0;
  for (const x of list) {
    const width = x.shape[axis] * inner;
    for (const [k, value] of valuesOf(x).entries()) {
      values[Math.floor(k / width) * extent * inner + start + (k % width)] = value;
    }
    start += width;
  }
  return tensor;
}

/** The value in another format: i32 truncates; float formats keep float64 here, as all of the oracle does. */
export function cast(x: Tensor, dtype: DType): Tensor {
  const values = dtype === "i32" ? valuesOf(x).map(toI32) : valuesOf(x);
  return fromOracleValues({ device: x.device, dtype }, x.shape, values);
}

function toI32(value: number): number {
  if (Number.isNaN(value)) return 0;
  return Math.min(Math.max(Math.trunc(value), -(2 ** 31)), 2 ** 31 - 1) + 0;
}
