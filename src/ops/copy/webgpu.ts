import type { Device } from "../../devices/device.js";
import { map } from "../../devices/webgpu/map.js";
import type { DType } from "../../tensor/dtype.js";
import type { Shape } from "../../tensor/shape.js";
import { noGrad } from "../../tensor/tape.js";
import { empty, type Tensor } from "../../tensor/tensor.js";

const COPY_F32 = "fn apply(i: u32) -> f32 { return x_of(i); }";
const COPY_I32 = "fn apply(i: u32) -> i32 { return x_of(i); }";

/** Writes x into a view of the same shape. */
function copyInto(view: Tensor, x: Tensor): void {
  const apply = x.dtype === "i32" ? COPY_I32 : COPY_F32;
  map("copy", view, { x: { tensor: x, strides: x.strides } }, apply);
}

export function contiguous(x: Tensor): Tensor {
  const out = empty(x.shape, x.device, x.dtype);
  copyInto(out, x);
  return out;
}

export function full(shape: Shape, value: number, like: { device: Device; dtype: DType }): Tensor {
  const out = empty(shape, like.device, like.dtype);
  fill(out, value);
  return out;
}

function fill(out: Tensor, value: number): void {
  if (out.dtype === "i32") {
    // As an f32 parameter an integer would lose digits: its two halves do not.
    const apply = "fn apply(i: u32) -> i32 { return (i32(P.high) << 16u) | i32(P.low); }";
    map("full-i32", out, {}, apply, { high: value >> 16, low: value & 0xffff });
  } else map("full", out, {}, "fn apply(i: u32) -> f32 { return P.value; }", { value });
}

export function pad(x: Tensor, axis: number, before: number, after: number): Tensor {
  const extent = x.shape[axis];
  const out = empty(
    x.shape.map((n, k) => (k === axis ? before + n + after : n)),
    x.device,
    x.dtype,
  );
  noGrad(() => {
    const part = (start: number, end: number, write: (view: Tensor) => void) => {
      if (start === end) return;
      const view = out.slice(axis, start, end);
      write(view);
      view.dispose();
    };
    part(0, before, (view) => fill(view, 0));
    part(before, before + extent, (view) => copyInto(view, x));
    part(before + extent, before + extent + after, (view) => fill(view, 0));
  });
  return out;
}

export function concat(list: readonly Tensor[], axis: number): Tensor {
  const extent = list.reduce((n, x) => n + x.shape[axis], 0);
  const out = empty(
    list[0].shape.map((n, k) => (k === axis ? extent : n)),
    list[0].device,
    list[0].dtype,
  );
  let start = 0;
  noGrad(() => {
    for (const x of list) {
      const view = out.slice(axis, start, start + x.shape[axis]);
      copyInto(view, x);
      view.dispose();
      start += x.shape[axis];
    }
  });
  return out;
}

/** Float to i32 truncates and saturates, and NaN gives 0. */
const TO_I32 = `
fn apply(i: u32) -> i32 {
  let value = x_of(i);
  if ((bitcast<u32>(value) & 0x7fffffffu) > 0x7f800000u) { return 0; }
  if (value >= 2147483648.0) { return 2147483647; }
  if (value <= -2147483648.0) { return -2147483647 - 1; }
  return i32(value);
}`;

export function cast(x: Tensor, dtype: DType): Tensor {
  const out = empty(x.shape, x.device, dtype);
  const [from, to] = [x.dtype === "i32", dtype === "i32"];
  let apply = COPY_F32;
  if (from && to) apply = COPY_I32;
  else if (from) apply = "fn apply(i: u32) -> f32 { return f32(x_of(i)); }";
  else if (to) apply = TO_I32;
  map("cast", out, { x: { tensor: x, strides: x.strides } }, apply);
  return out;
}
