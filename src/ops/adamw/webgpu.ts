import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import type { AdamWTensors, AdamWUpdate } from "./contract.js";

const NUMBERS = ["rate", "beta1", "beta2", "epsilon", "decay", "meanFix", "squareFix", "maxNorm"] as const;

const kernel = ({ parameter, rounded, gradient }: AdamWTensors): KernelSource => ({
  name: "adamw",
  constants: { ROUNDED: rounded !== undefined },
  tensors: {
    parameter: { dtype: parameter.dtype, access: "write" },
    gradient: { dtype: gradient.dtype, access: "read" },
    mean: { dtype: "f32", access: "write" },
    square: { dtype: "f32", access: "write" },
    squaredNorm: { dtype: "f32", access: "read" },
    ...(rounded && { rounded: { dtype: rounded.dtype, access: "write" } as const }),
  },
  parameters: { count: "u32", ...Object.fromEntries(NUMBERS.map((name) => [name, "f32"] as const)) },
  body: `${rounded ? "" : "fn store_rounded(i: u32, value: f32) {}\n"}
fn update(i: u32, shrink: f32) {
  let g = shrink * load_gradient(i);
  let mean = P.beta1 * load_mean(i) + (1.0 - P.beta1) * g;
  let square = P.beta2 * load_square(i) + (1.0 - P.beta2) * g * g;
  store_mean(i, mean);
  store_square(i, square);
  let before = load_parameter(i);
  let after = before - P.rate * (mean / P.meanFix / (sqrt(square / P.squareFix) + P.epsilon) + P.decay * before);
  store_parameter(i, after);
  if (ROUNDED) { store_rounded(i, after); }
}
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = id.x + id.y * groups.x * 256u;
  if (i >= P.count) { return; }
  let norm = sqrt(load_squaredNorm(0u));
  update(i, select(1.0, P.maxNorm / norm, norm > P.maxNorm));
}`,
});

export const update: AdamWUpdate = (plan, tensors) => {
  const { parameter, rounded, gradient, mean, square, squaredNorm } = tensors;
  if (parameter.size === 0) return;
  const device = webgpuDevice(parameter);
  device.dispatch(kernel(tensors), {
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
    },
    workgroups: device.spread(Math.ceil(parameter.size / 256)),
  });
};
