import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { rowsAreWide, WIDE } from "../../devices/webgpu/wide.js";
import type { AdamWTensors, AdamWUpdate } from "./contract.js";

const NUMBERS = ["rate", "beta1", "beta2", "epsilon", "decay", "meanFix", "squareFix", "maxNorm", "unscale"] as const;

const UPDATE = `
fn moved_mean(mean: Values, g: Values) -> Values { return P.beta1 * mean + (1.0 - P.beta1) * g; }
fn moved_square(square: Values, g: Values) -> Values { return P.beta2 * square + (1.0 - P.beta2) * g * g; }
fn moved(before: Values, mean: Values, square: Values) -> Values {
  return before - P.rate * (mean / P.meanFix / (sqrt(square / P.squareFix) + P.epsilon) + P.decay * before);
}`;

const ONE = `alias Values = f32;${UPDATE}
fn update(i: u32, shrink: f32) {
  let g = shrink * load_gradient(i);
  let mean = moved_mean(load_mean(i), g);
  let square = moved_square(load_square(i), g);
  store_mean(i, mean);
  store_square(i, square);
  let after = moved(load_parameter(i), mean, square);
  store_parameter(i, after);
  if (ROUNDED) { store_rounded(i, after); }
}`;

const EIGHT_AT_ONCE = `alias Values = vec4f;${UPDATE}
struct Moved { after: vec4f, mean: vec4f, square: vec4f }
fn moved4(before: vec4f, mean: vec4f, square: vec4f, g: vec4f) -> Moved {
  let m = moved_mean(mean, g);
  let s = moved_square(square, g);
  return Moved(moved(before, m, s), m, s);
}
fn update(i: u32, shrink: f32) {
  let g = load8_gradient(i);
  let mean = load8_mean(i);
  let square = load8_square(i);
  let before = load8_parameter(i);
  let a = moved4(before.a, mean.a, square.a, shrink * g.a);
  let b = moved4(before.b, mean.b, square.b, shrink * g.b);
  store8_mean(i, a.mean, b.mean);
  store8_square(i, a.square, b.square);
  store8_parameter(i, a.after, b.after);
  if (ROUNDED) { store8_rounded(i, a.after, b.after); }
}`;

const kernel = ({ parameter, rounded, gradient }: AdamWTensors, wide: boolean): KernelSource => ({
  name: "adamw",
  constants: { ROUNDED: rounded !== undefined, AT_ONCE: wide ? WIDE : 1 },
  tensors: {
    parameter: { dtype: parameter.dtype, access: "write", wide },
    gradient: { dtype: gradient.dtype, access: "read", wide },
    mean: { dtype: "f32", access: "write", wide },
    square: { dtype: "f32", access: "write", wide },
    squaredNorm: { dtype: "f32", access: "read" },
    ...(rounded && { rounded: { dtype: rounded.dtype, access: "write", wide } as const }),
  },
  parameters: { count: "u32", ...Object.fromEntries(NUMBERS.map((name) => [name, "f32"] as const)) },
  body: () => `${rounded ? "" : `fn store${wide ? "8" : ""}_rounded(i: u32, ${wide ? "a: vec4f, b: vec4f" : "value: f32"}) {}\n`}
${wide ? EIGHT_AT_ONCE : ONE}
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = AT_ONCE * (id.x + id.y * groups.x * 256u);
  if (i >= P.count) { return; }
  let squared = load_squaredNorm(0u);
  // By its bits: what comparing with an infinity or a NaN gives is up to the driver.
  if ((bitcast<u32>(squared) & 0x7f800000u) == 0x7f800000u) { return; }
  let norm = P.unscale * sqrt(squared);
  update(i, P.unscale * select(1.0, P.maxNorm / norm, norm > P.maxNorm));
}`,
});

export const update: AdamWUpdate = (plan, tensors) => {
  const { parameter, rounded, gradient, mean, square, squaredNorm } = tensors;
  if (parameter.size === 0) return;
  const device = webgpuDevice(parameter);
  const wide = rowsAreWide(parameter.size, parameter, rounded, gradient, mean, square);
  device.dispatch(kernel(tensors, wide), {
    tensors: { parameter, gradient, mean, square, squaredNorm, ...(rounded && { rounded }) },
    parameters: {
      count: parameter.size,
      rate: plan.learningRate,
      beta1: plan.beta1,
      beta2: plan.beta2,
      epsilon: plan.epsilon,
      decay: plan.weightDecay,
      meanFix: 1 - plan.beta1 ** plan.step,
      squareFix: 1 - plan.beta2 ** plan.step,
      // The largest f32: comparing with an infinity is the driver's to define.
      maxNorm: Math.min(plan.maxNorm, 3.4e38),
      unscale: plan.unscale ?? 1,
    },
    workgroups: device.spread(Math.ceil(parameter.size / (256 * (wide ? WIDE : 1)))),
  });
};
