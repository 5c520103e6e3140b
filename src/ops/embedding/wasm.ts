import { addressOf, wasmDevice } from "../../devices/wasm/device.js";
import { f32x4, i32 } from "../../devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../../devices/wasm/kernel.js";
import { forLanes } from "../../devices/wasm/lanes.js";
import { DTYPE_BYTES } from "../../tensor/dtype.js";
import { empty } from "../../tensor/tensor.js";
import { cast } from "../copy/wasm.js";
import { checkIds, type EmbeddingBackward, type EmbeddingForward } from "./contract.js";

const forwardArgs = new Arguments({ weight: "i32", ids: "i32", output: "i32", count: "i32", bytes: "i32" });
const TOKENS = 128;

export const embeddingForward: EmbeddingForward = (weight, ids, dtype) => {
  const device = wasmDevice(weight);
  const [rows, width] = weight.shape;
  const count = ids.size;
  checkIds(device.readNow(ids.storage, ids.offset, count), rows);
  const module = device.module("embedding forward", (m) => {
    m.function(
      "forward",
      KERNEL_PARAMS,
      (f, args, item) => {
        const a = forwardArgs.locals(f, args);
        const end = f.local("i32", i32.min(i32.mul(i32.add(item, 1), TOKENS), a.count));
        f.for(i32.mul(item, TOKENS), end, 1, (k) => {
          const id = i32.load(a.ids.plus(k.times(4)));
          f.copy(a.output.plus(k.times(a.bytes)), a.weight.plus(i32.mul(id, a.bytes)), a.bytes);
        });
      },
      { exported: true },
    );
  });
  const output = empty([...ids.shape, width], device, weight.dtype);
  const bytes = width * DTYPE_BYTES[weight.dtype];
  const values = { weight: addressOf(weight), ids: addressOf(ids), output: addressOf(output), count, bytes };
  device.run(module, "forward", forwardArgs, values, Math.ceil(count / TOKENS));
  if (dtype === weight.dtype) return output;
  const converted = cast(output, dtype);
  output.dispose();
  return converted;
};

const backwardArgs = new Arguments({
  ids: "i32",
  dOutput: "i32",
  dWeight: "i32",
  sums: "i32",
  count: "i32",
  width: "i32",
  rows: "i32",
});
/** Columns of one item. Threads share out columns, so that each row's sum is made in the order of ids. */
const COLUMNS = 64;

export const embeddingBackward: EmbeddingBackward = (weight, ids, dOutput, dtype) => {
  const device = wasmDevice(weight);
  const [rows, width] = weight.shape;
  const half = dtype !== "f32";
  const module = device.module(`embedding backward ${dtype} ${dOutput.dtype}`, (m) => {
    m.function(
      "backward",
      KERNEL_PARAMS,
      (f, args, item) => {
        const a = backwardArgs.locals(f, args);
        const column = f.local("i32", i32.mul(item, COLUMNS));
        const columns = f.local("i32", i32.min(COLUMNS, a.width.minus(column)));
        const stride = f.local("i32", a.width.times(4));
        const first = f.local("i32", a.sums.plus(column.times(4)));
        const row = f.local("i32", first);
        f.for(0, a.rows, 1, () => {
          f.fill(row, 0, columns.times(4));
          row.add(stride);
        });
        const from = f.local("i32", a.dOutput.plus(column.times(DTYPE_BYTES[dOutput.dtype])));
        f.for(0, a.count, 1, (k) => {
          row.set(first.plus(i32.mul(i32.load(a.ids.plus(k.times(4))), stride)));
          forLanes(f, columns, (lanes) =>
            lanes.store("f32", row, f32x4.add(lanes.load("f32", row), lanes.load(dOutput.dtype, from))),
          );
          from.add(a.width.times(DTYPE_BYTES[dOutput.dtype]));
        });
        if (!half) return;
        row.set(first);
        const to = f.local("i32", a.dWeight.plus(column.times(2)));
        f.for(0, a.rows, 1, () => {
          forLanes(f, columns, (lanes) => lanes.store(dtype, to, lanes.load("f32", row)));
          row.add(stride);
          to.add(a.width.times(2));
        });
      },
      { exported: true },
    );
  });
  const dWeight = empty(weight.shape, device, dtype);
  // Sums are made in f32, in place where the gradient is f32.
  const sums = half ? device.reserve(4 * weight.size, "embedding's backward") : addressOf(dWeight);
  const values = {
    ids: addressOf(ids),
    dOutput: addressOf(dOutput),
    dWeight: addressOf(dWeight),
    sums,
    count: ids.size,
    width,
    rows,
  };
  device.run(module, "backward", backwardArgs, values, Math.ceil(width / COLUMNS));
  if (half) device.release(sums);
  return dWeight;
};
