import { addressOf, wasmDevice } from "../../devices/wasm/device.js";
import { f32, f32x4, f64, i32 } from "../../devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../../devices/wasm/kernel.js";
import { forLanes, horizontalSum } from "../../devices/wasm/lanes.js";
import { DTYPE_BYTES } from "../../tensor/dtype.js";
import { empty } from "../../tensor/tensor.js";
import type { SquareSum } from "./contract.js";

const partArgs = new Arguments({ x: "i32", parts: "i32", size: "i32" });
const totalArgs = new Arguments({ parts: "i32", count: "i32", output: "i32" });
/** Elements of one item; the sum does not depend on the number of threads. */
const PART = 4096;

export const squareSum: SquareSum = (tensors) => {
  const device = wasmDevice(tensors[0]);
  const counts = tensors.map((t) => Math.ceil(t.size / PART));
  const count = counts.reduce((a, b) => a + b, 0);
  const parts = device.reserve(4 * count, "squareSum");
  let at = parts;
  for (const [k, x] of tensors.entries()) {
    const module = device.module(`square sum ${x.dtype}`, (m) => {
      m.function(
        "part",
        KERNEL_PARAMS,
        (f, args, item) => {
          const a = partArgs.locals(f, args);
          const start = f.local("i32", i32.mul(item, PART));
          const row = f.local("i32", a.x.plus(start.times(DTYPE_BYTES[x.dtype])));
          const sum = f.local("v128", f32x4.const(0));
          const value = f.local("v128");
          forLanes(f, f.local("i32", i32.min(PART, a.size.minus(start))), (lanes) => {
            value.set(lanes.load(x.dtype, row));
            sum.set(m.madd(value, value, sum));
          });
          f.store("f32", a.parts.plus(item.times(4)), horizontalSum(sum));
        },
        { exported: true },
      );
    });
    device.run(module, "part", partArgs, { x: addressOf(x), parts: at, size: x.size }, counts[k]);
    at += 4 * counts[k];
  }
  const total = device.module("square sum total", (m) => {
    m.function(
      "total",
      KERNEL_PARAMS,
      (f, args) => {
        const a = totalArgs.locals(f, args);
        const sum = f.local("f64", 0);
        f.for(0, a.count, 1, (k) => sum.set(f64.add(sum, f64.fromF32(f32.load(a.parts.plus(k.times(4)))))));
        f.store("f32", a.output, f32.fromF64(sum));
      },
      { exported: true },
    );
  });
  const output = empty([], device, "f32");
  device.run(total, "total", totalArgs, { parts, count, output: addressOf(output) }, 1);
  device.release(parts);
  return output;
};
