import { addressOf, wasmDevice } from "../../devices/wasm/device.js";
import { type Expr, f32, f32x4, i32, sumLanes } from "../../devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../../devices/wasm/kernel.js";
import { forLanes } from "../../devices/wasm/lanes.js";
import { DTYPE_BYTES, type DType } from "../../tensor/dtype.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { mapTwo } from "../elementwise/wasm.js";
import type { NormBackward, NormForward, NormInputs, NormPlan } from "./contract.js";

/** Rows of one item: fixed, so that sums over rows do not depend on the number of threads. */
const ROWS = 32;

const forwardArgs = new Arguments({
  x: "i32",
  weight: "i32",
  bias: "i32",
  output: "i32",
  statistics: "i32",
  rows: "i32",
  width: "i32",
  epsilon: "f32",
});

export const normForward: NormForward = ({ rows, width, epsilon, centered, dtype }, { x, weight, bias }) => {
  const device = wasmDevice(x);
  const types = [x.dtype, weight.dtype, bias?.dtype] as const;
  const module = device.module(`norm forward ${types.join()} ${dtype} ${centered}`, (m) => {
    m.function(
      "forward",
      KERNEL_PARAMS,
      (f, args, item) => {
        const a = forwardArgs.locals(f, args);
        const inverse = f.local("f32", f32.div(f32.const(1), f32.fromI32(a.width)));
        const sum = f.local("v128");
        const mean = f.local("v128", f32x4.const(0));
        const rstd = f.local("v128");
        const end = f.local("i32", i32.min(i32.mul(i32.add(item, 1), ROWS), a.rows));
        f.for(i32.mul(item, ROWS), end, 1, (r) => {
          const row = (base: Expr, stored: DType) =>
            f.local("i32", base.plus(i32.mul(r, a.width.times(DTYPE_BYTES[stored]))));
          const [from, to] = [row(a.x, x.dtype), row(a.output, dtype)];
          if (centered) {
            sum.set(f32x4.const(0));
            forLanes(f, a.width, (lanes) => sum.set(f32x4.add(sum, lanes.load(x.dtype, from))));
            mean.set(f32x4.splat(f32.mul(sumLanes(sum), inverse)));
          }
          sum.set(f32x4.const(0));
          const difference = f.local("v128");
          forLanes(f, a.width, (lanes) => {
            difference.set(lanes.only(f32x4.sub(lanes.load(x.dtype, from), mean)));
            sum.set(m.madd(difference, difference, sum));
          });
          const variance = f32.mul(sumLanes(sum), inverse);
          rstd.set(f32x4.splat(f32.div(f32.const(1), f32.sqrt(f32.add(variance, a.epsilon)))));
          const statistics = f.local("i32", a.statistics.plus(r.times(8)));
          f.store("f32", statistics, f32x4.extract(mean, 0));
          f.store("f32", statistics, f32x4.extract(rstd, 0), 4);
          forLanes(f, a.width, (lanes) => {
            const n = f32x4.mul(f32x4.sub(lanes.load(x.dtype, from), mean), rstd);
            const scaled = f.local("v128", f32x4.mul(n, lanes.load(weight.dtype, a.weight)));
            lanes.store(dtype, to, bias ? f32x4.add(scaled, lanes.load(bias.dtype, a.bias)) : scaled);
          });
        });
      },
      { exported: true },
    );
  });
  const output = empty(x.shape, device, dtype);
  const statistics = empty([rows, 2], device, "f32");
  const values = {
    x: addressOf(x),
    weight: addressOf(weight),
    bias: bias ? addressOf(bias) : 0,
    output: addressOf(output),
    statistics: addressOf(statistics),
    rows,
    width,
    epsilon,
  };
  device.run(module, "forward", forwardArgs, values, Math.ceil(rows / ROWS));
  return { output, statistics };
};

const backwardArgs = new Arguments({
  x: "i32",
  weight: "i32",
  statistics: "i32",
  dOutput: "i32",
  dX: "i32",
  partial: "i32",
  rows: "i32",
  width: "i32",
});
const gatherArgs = new Arguments({ partial: "i32", parts: "i32", stride: "i32", to: "i32", width: "i32" });

export const normBackward: NormBackward = (plan, inputs, statistics, dOutput, more) => {
  const made = ownGradients(plan, inputs, statistics, dOutput);
  if (!more) return made;
  const x = mapTwo("add", made.x, more);
  made.x.dispose();
  return { ...made, x };
};

function ownGradients(
  { rows, width, centered }: NormPlan,
  { x, weight, bias }: NormInputs,
  statistics: Tensor,
  dOutput: Tensor,
): ReturnType<NormBackward> {
  const device = wasmDevice(x);
  const [dX, dW] = [empty(x.shape, device, x.dtype), empty(weight.shape, device, weight.dtype)];
  const dB = bias && empty(bias.shape, device, bias.dtype);
  const parts = Math.ceil(rows / ROWS);
  // Each item sums its rows' dWeight and dBias into a row pair of its own.
  const partial = device.reserve(parts * 2 * width * 4, "layerNorm's backward");
  const module = device.module(`norm backward ${x.dtype} ${weight.dtype} ${dOutput.dtype} ${centered}`, (m) => {
    m.function(
      "backward",
      KERNEL_PARAMS,
      (f, args, item) => {
        const a = backwardArgs.locals(f, args);
        const inverse = f.local("f32", f32.div(f32.const(1), f32.fromI32(a.width)));
        const partW = f.local("i32", a.partial.plus(i32.mul(item, a.width.times(8))));
        const partB = f.local("i32", partW.plus(a.width.times(4)));
        f.fill(partW, 0, a.width.times(8));
        const [sumG, sumGN, mean, rstd, n, d, g] = f.locals("v128", 7);
        const end = f.local("i32", i32.min(i32.mul(i32.add(item, 1), ROWS), a.rows));
        f.for(i32.mul(item, ROWS), end, 1, (r) => {
          const row = (base: Expr, dtype: DType) =>
            f.local("i32", base.plus(i32.mul(r, a.width.times(DTYPE_BYTES[dtype]))));
          const [xRow, dRow, to] = [row(a.x, x.dtype), row(a.dOutput, dOutput.dtype), row(a.dX, x.dtype)];
          mean.set(f32x4.splat(f32.load(a.statistics.plus(r.times(8)))));
          rstd.set(f32x4.splat(f32.load(a.statistics.plus(r.times(8)), 4)));
          sumG.set(f32x4.const(0));
          sumGN.set(f32x4.const(0));
          forLanes(f, a.width, (lanes) => {
            n.set(f32x4.mul(f32x4.sub(lanes.load(x.dtype, xRow), mean), rstd));
            d.set(lanes.load(dOutput.dtype, dRow));
            g.set(f32x4.mul(d, lanes.load(weight.dtype, a.weight)));
            sumG.set(f32x4.add(sumG, g));
            sumGN.set(m.madd(g, n, sumGN));
            lanes.store("f32", partW, m.madd(d, n, lanes.load("f32", partW)));
            if (centered) lanes.store("f32", partB, f32x4.add(d, lanes.load("f32", partB)));
          });
          sumG.set(centered ? f32x4.splat(f32.mul(sumLanes(sumG), inverse)) : f32x4.const(0));
          sumGN.set(f32x4.splat(f32.mul(sumLanes(sumGN), inverse)));
          forLanes(f, a.width, (lanes) => {
            n.set(f32x4.mul(f32x4.sub(lanes.load(x.dtype, xRow), mean), rstd));
            g.set(f32x4.mul(lanes.load(dOutput.dtype, dRow), lanes.load(weight.dtype, a.weight)));
            const inner = f32x4.sub(f32x4.sub(g, sumG), f32x4.mul(n, sumGN));
            lanes.store(x.dtype, to, f32x4.mul(rstd, inner));
          });
        });
      },
      { exported: true },
    );
  });
  const values = {
    x: addressOf(x),
    weight: addressOf(weight),
    statistics: addressOf(statistics),
    dOutput: addressOf(dOutput),
    dX: addressOf(dX),
    partial,
    rows,
    width,
  };
  device.run(module, "backward", backwardArgs, values, parts);
  for (const [k, to] of [dW, dB].entries()) {
    if (!to) continue;
    const gather = device.module(`norm gather ${to.dtype}`, (m) => {
      m.function(
        "gather",
        KERNEL_PARAMS,
        (f, args) => {
          const a = gatherArgs.locals(f, args);
          const row = f.local("i32");
          const sum = f.local("v128");
          forLanes(f, a.width, (lanes) => {
            sum.set(f32x4.const(0));
            row.set(a.partial);
            f.for(0, a.parts, 1, () => {
              sum.set(f32x4.add(sum, lanes.load("f32", row)));
              row.add(a.stride);
            });
            lanes.store(to.dtype, a.to, sum);
          });
        },
        { exported: true },
      );
    });
    const gathered = { partial: partial + 4 * width * k, parts, stride: 8 * width, to: addressOf(to), width };
    device.run(gather, "gather", gatherArgs, gathered, 1);
  }
  device.release(partial);
  return { x: dX, weight: dW, bias: dB };
}
