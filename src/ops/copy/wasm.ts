import type { Device } from "../../devices/device.js";
import { type WasmDevice, wasmDevice } from "../../devices/wasm/device.js";
import { i32 } from "../../devices/wasm/emitter.js";
import { map } from "../../devices/wasm/map.js";
import { type Operand, type RowWriter, rowParams, runRows, sliceOf } from "../../devices/wasm/rows.js";
import { DTYPE_BYTES, type DType, toBF16Bits, toF16Bits } from "../../tensor/dtype.js";
import type { Shape } from "../../tensor/shape.js";
import { empty, type Tensor } from "../../tensor/tensor.js";

/** Elements of `from` in `to`, bit for bit; both of one dtype, `from` broadcasting to `to`. */
export function copyInto(device: WasmDevice, to: Operand, from: Operand): void {
  const bytes = DTYPE_BYTES[to.dtype];
  const write: RowWriter = (m, steps) =>
    m.function("row", rowParams(2), (f, n, target, source, targetStep, sourceStep) => {
      if (steps[0] === 1 && steps[1] === 1) {
        f.copy(target, source, n.times(bytes));
        return;
      }
      f.doWhile(() => {
        if (bytes === 2) f.store("i32_16", target, i32.load16U(source));
        else f.store("i32", target, i32.load(source));
        target.add(targetStep);
        source.add(sourceStep);
        n.set(i32.sub(n, 1));
      }, n);
    });
  runRows(device, `copy ${bytes}`, [to, from], write);
}

const bits = new DataView(new ArrayBuffer(4));

function bitsOf(dtype: DType, value: number): number {
  if (dtype === "i32") return value | 0;
  if (dtype === "f16") return toF16Bits(value);
  if (dtype === "bf16") return toBF16Bits(value);
  bits.setFloat32(0, value);
  return bits.getInt32(0);
}

/** Every element of `to` set to one value. */
export function fillInto(device: WasmDevice, to: Operand, value: number): void {
  const bytes = DTYPE_BYTES[to.dtype];
  const write: RowWriter = (m, steps) =>
    m.function("row", rowParams(1, [["bits", "i32"]]), (f, n, target, step, pattern) => {
      const each = () =>
        f.doWhile(() => {
          f.store(bytes === 2 ? "i32_16" : "i32", target, pattern);
          target.add(step);
          n.set(i32.sub(n, 1));
        }, n);
      if (steps[0] === 1) f.if(pattern, each, () => f.fill(target, 0, n.times(bytes)));
      else each();
    });
  const extra = { bits: { type: "i32", value: bitsOf(to.dtype, value) } } as const;
  runRows(device, `fill ${bytes}`, [to], write, { extra });
}

export function contiguous(x: Tensor): Tensor {
  const out = empty(x.shape, x.device, x.dtype);
  copyInto(wasmDevice(x), out, x);
  return out;
}

export function full(shape: Shape, value: number, like: { device: Device; dtype: DType }): Tensor {
  const out = empty(shape, like.device, like.dtype);
  fillInto(like.device as WasmDevice, out, value);
  return out;
}

export function pad(x: Tensor, axis: number, before: number, after: number): Tensor {
  const device = wasmDevice(x);
  const extent = x.shape[axis];
  const out = empty(
    x.shape.map((n, k) => (k === axis ? before + n + after : n)),
    device,
    x.dtype,
  );
  fillInto(device, sliceOf(out, axis, 0, before), 0);
  copyInto(device, sliceOf(out, axis, before, extent), x);
  fillInto(device, sliceOf(out, axis, before + extent, after), 0);
  return out;
}

export function concat(list: readonly Tensor[], axis: number): Tensor {
  const device = wasmDevice(list[0]);
  const extent = list.reduce((n, x) => n + x.shape[axis], 0);
  const out = empty(
    list[0].shape.map((n, k) => (k === axis ? extent : n)),
    device,
    list[0].dtype,
  );
  let start = 0;
  for (const x of list) {
    copyInto(device, sliceOf(out, axis, start, x.shape[axis]), x);
    start += x.shape[axis];
  }
  return out;
}

export function cast(x: Tensor, dtype: DType): Tensor {
  return map(wasmDevice(x), "cast", x.shape, dtype, [x], (_f, [value]) => value);
}
