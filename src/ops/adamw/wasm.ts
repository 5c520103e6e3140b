import { addressOf, wasmDevice } from "../../devices/wasm/device.js";
import { f32, f32x4, i32, select } from "../../devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../../devices/wasm/kernel.js";
import { forLanes } from "../../devices/wasm/lanes.js";
import { DTYPE_BYTES, type DType } from "../../tensor/dtype.js";
import type { AdamWUpdate } from "./contract.js";

const layout = new Arguments({
  parameter: "i32",
  rounded: "i32",
  gradient: "i32",
  mean: "i32",
  square: "i32",
  squaredNorm: "i32",
  size: "i32",
  beta1: "f32",
  beta2: "f32",
  epsilon: "f32",
  maxNorm: "f32",
  unscale: "f32",
  /** 1 − learningRate · weightDecay */
  keep: "f32",
  /** learningRate / (1 − β1^step) */
  rate: "f32",
  /** 1 / (1 − β2^step) */
  correction: "f32",
});
/** Elements of one item. */
const PART = 8192;

export const update: AdamWUpdate = (plan, tensors) => {
  const { parameter, rounded, gradient, mean, square, squaredNorm } = tensors;
  const device = wasmDevice(parameter);
  if (!Number.isFinite(device.readNow(squaredNorm.storage, squaredNorm.offset, 1)[0])) return;
  const module = device.module(`adamw ${parameter.dtype} ${rounded?.dtype} ${gradient.dtype}`, (m) => {
    m.function(
      "update",
      KERNEL_PARAMS,
      (f, args, item) => {
        const a = layout.locals(f, args);
        const start = f.local("i32", i32.mul(item, PART));
        const row = (address: typeof start, dtype: DType) =>
          f.local("i32", address.plus(start.times(DTYPE_BYTES[dtype])));
        const [p, g] = [row(a.parameter, parameter.dtype), row(a.gradient, gradient.dtype)];
        const [mRow, vRow] = [row(a.mean, "f32"), row(a.square, "f32")];
        const norm = f.local("f32", f32.mul(a.unscale, f32.sqrt(f32.load(a.squaredNorm))));
        const shrink = select(f32.div(a.maxNorm, norm), f32.const(1), f32.gt(norm, a.maxNorm));
        const splat = (value: Parameters<typeof f32x4.splat>[0]) => f.local("v128", f32x4.splat(value));
        const scale = splat(f32.mul(a.unscale, shrink));
        const [beta1, beta2, epsilon] = [splat(a.beta1), splat(a.beta2), splat(a.epsilon)];
        const rest1 = splat(f32.sub(f32.const(1), a.beta1));
        const rest2 = splat(f32.sub(f32.const(1), a.beta2));
        const [keep, rate, correction] = [splat(a.keep), splat(a.rate), splat(a.correction)];
        const copy = rounded && row(a.rounded, rounded.dtype);
        const [d, mean4, square4, value] = f.locals("v128", 4);
        forLanes(f, f.local("i32", i32.min(PART, a.size.minus(start))), (lanes) => {
          d.set(f32x4.mul(lanes.load(gradient.dtype, g), scale));
          mean4.set(f32x4.add(f32x4.mul(beta1, lanes.load("f32", mRow)), f32x4.mul(rest1, d)));
          square4.set(f32x4.add(f32x4.mul(beta2, lanes.load("f32", vRow)), f32x4.mul(f32x4.mul(rest2, d), d)));
          lanes.store("f32", mRow, mean4);
          lanes.store("f32", vRow, square4);
          const root = f32x4.add(f32x4.sqrt(f32x4.mul(square4, correction)), epsilon);
          const move = f32x4.div(f32x4.mul(rate, mean4), root);
          value.set(f32x4.sub(f32x4.mul(keep, lanes.load(parameter.dtype, p)), move));
          lanes.store(parameter.dtype, p, value);
          if (rounded && copy) lanes.store(rounded.dtype, copy, value);
        });
      },
      { exported: true },
    );
  });
  const { learningRate, beta1, beta2, epsilon, weightDecay, step, maxNorm, unscale = 1 } = plan;
  const values = {
    parameter: addressOf(parameter),
    rounded: rounded ? addressOf(rounded) : 0,
    gradient: addressOf(gradient),
    mean: addressOf(mean),
    square: addressOf(square),
    squaredNorm: addressOf(squaredNorm),
    size: parameter.size,
    beta1,
    beta2,
    epsilon,
    maxNorm,
    unscale,
    keep: 1 - learningRate * weightDecay,
    rate: learningRate / (1 - beta1 ** step),
    correction: 1 / (1 - beta2 ** step),
  };
  device.run(module, "update", layout, values, Math.ceil(parameter.size / PART));
};
