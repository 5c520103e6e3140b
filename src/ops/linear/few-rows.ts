import { load1, load4, store1, store4 } from "../../devices/wasm/convert.js";
import { addressOf, wasmDevice } from "../../devices/wasm/device.js";
import { f32, f32x4, i32, type Local, shuffle32 } from "../../devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../../devices/wasm/kernel.js";
import { DTYPE_BYTES, type DType } from "../../tensor/dtype.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { unary } from "../elementwise/wasm.js";
import type { LinearEnd } from "./contract.js";

const layout = new Arguments({
  x: "i32",
  weight: "i32",
  bias: "i32",
  output: "i32",
  rows: "i32",
  inputs: "i32",
  outputs: "i32",
  /** Bytes between rows. */
  xStep: "i32",
  weightStep: "i32",
  outputsPerItem: "i32",
});

/** Up to so many rows, packing the weight for a matrix product costs more than the product: it is read once, as it is. */
export const FEW_ROWS = 4;
/** Multiply-adds of one item, at least: less is not worth waking another thread for. */
const ITEM_TERMS = 65536;

/** linear for a few rows, such as one token: dot products of x with rows of the weight, four rows of it at a time. */
export function linearFewRows(x: Tensor, weight: Tensor, { bias, activation, dtype }: LinearEnd): Tensor {
  const device = wasmDevice(x);
  const key = `linear few rows ${x.dtype} ${weight.dtype} ${bias?.dtype} ${activation} ${dtype}`;
  const module = device.module(key, (m) => {
    m.function(
      "outputs",
      KERNEL_PARAMS,
      (f, args, item) => {
        const a = layout.locals(f, args);
        const [xRow, wRow, to, i, left] = f.locals("i32", 5);
        const result = f.local("v128");
        const at = (row: Local, dtype: DType) => row.plus(i.times(DTYPE_BYTES[dtype]));
        const whole = f.local("i32", i32.and(a.inputs, i32.const(-4)));
        /** Dot products of x with `count` rows of the weight, each spread over the lanes of one sum. */
        const dots = (sums: readonly Local[], rows: readonly Local[], v: Local) => {
          for (const [k, row] of rows.entries()) {
            row.set(k === 0 ? wRow : rows[k - 1].plus(a.weightStep));
            sums[k].set(f32x4.const(0));
          }
          f.for(
            0,
            whole,
            4,
            () => {
              v.set(load4(f, x.dtype, at(xRow, x.dtype)));
              for (const [k, row] of rows.entries()) {
                sums[k].set(m.madd(v, load4(f, weight.dtype, at(row, weight.dtype)), sums[k]));
              }
            },
            i,
          );
          f.while(i32.lt(i, a.inputs), () => {
            for (const [k, row] of rows.entries()) {
              const product = f32.mul(
                load1(f, x.dtype, at(xRow, x.dtype)),
                load1(f, weight.dtype, at(row, weight.dtype)),
              );
              sums[k].set(f32x4.replace(sums[k], 0, f32.add(f32x4.extract(sums[k], 0), product)));
            }
            i.add(1);
          });
        };
        const finished = () => (activation === "none" ? result : unary[activation](f, result));
        const start = f.local("i32", i32.mul(item, a.outputsPerItem));
        const end = f.local("i32", i32.min(i32.add(start, a.outputsPerItem), a.outputs));
        const sums = f.locals("v128", 4);
        const rows = f.locals("i32", 4);
        const v = f.local("v128");
        const o = f.local("i32", start);
        const r = f.local("i32");
        const eachRow = (body: () => void) => {
          wRow.set(a.weight.plus(i32.mul(o, a.weightStep)));
          xRow.set(a.x);
          to.set(a.output.plus(o.times(DTYPE_BYTES[dtype])));
          f.for(
            0,
            a.rows,
            1,
            () => {
              body();
              xRow.add(a.xStep);
              to.add(a.outputs.times(DTYPE_BYTES[dtype]));
            },
            r,
          );
        };
        f.while(i32.le(o.plus(4), end), () => {
          eachRow(() => {
            dots(sums, rows, v);
            // Four sums of four lanes become one vector of four sums.
            const [s0, s1, s2, s3] = sums;
            result.set(f32x4.add(shuffle32(s0, s1, [0, 4, 1, 5]), shuffle32(s0, s1, [2, 6, 3, 7])));
            v.set(f32x4.add(shuffle32(s2, s3, [0, 4, 1, 5]), shuffle32(s2, s3, [2, 6, 3, 7])));
            result.set(f32x4.add(shuffle32(result, v, [0, 1, 4, 5]), shuffle32(result, v, [2, 3, 6, 7])));
            if (bias) {
              result.set(f32x4.add(result, load4(f, bias.dtype, a.bias.plus(o.times(DTYPE_BYTES[bias.dtype])))));
            }
            store4(f, dtype, to, finished());
          });
          o.add(4);
        });
        left.set(i32.sub(end, o));
        f.while(left, () => {
          eachRow(() => {
            const [sum] = sums;
            dots([sum], [rows[0]], v);
            const lane = (k: number) => f32x4.extract(sum, k);
            const total = f32.add(f32.add(lane(0), lane(1)), f32.add(lane(2), lane(3)));
            const addend = bias && load1(f, bias.dtype, a.bias.plus(o.times(DTYPE_BYTES[bias.dtype])));
            result.set(f32x4.splat(addend ? f32.add(total, addend) : total));
            store1(f, dtype, to, f32x4.extract(finished(), 0));
          });
          o.add(1);
          left.set(i32.sub(left, 1));
        });
      },
      { exported: true },
    );
  });
  const [rows, inputs] = x.shape;
  const outputs = weight.shape[0];
  const output = empty([rows, outputs], device, dtype);
  const outputsPerItem = 4 * Math.ceil(ITEM_TERMS / (4 * rows * Math.max(1, inputs)));
  const values = {
    x: addressOf(x),
    weight: addressOf(weight),
    bias: bias ? addressOf(bias) : 0,
    output: addressOf(output),
    rows,
    inputs,
    outputs,
    xStep: x.strides[0] * DTYPE_BYTES[x.dtype],
    weightStep: weight.strides[0] * DTYPE_BYTES[weight.dtype],
    outputsPerItem,
  };
  device.run(module, "outputs", layout, values, Math.ceil(outputs / outputsPerItem));
  return output;
}
