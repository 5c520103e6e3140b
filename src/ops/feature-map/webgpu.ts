import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { monomials } from "../../feature-map.js";
import { empty, fromValues, type Tensor } from "../../tensor/tensor.js";
import type { FeatureMapBackward, FeatureMapForward, FeaturePlan } from "./contract.js";

/** [D, degree + 1] i32: sorted indices, then the bits of the root of the multiplicity. Any degree. */
function table(like: Tensor, headDim: number, degree: number): Tensor {
  return webgpuDevice(like).constant(`monomial list ${headDim} ${degree}`, () => {
    const { length, indices, multiplicities } = monomials(headDim, degree);
    const words = new Int32Array((degree + 1) * length);
    const roots = new Float32Array(words.buffer);
    for (let f = 0; f < length; f++) {
      words.set(indices.subarray(f * degree, (f + 1) * degree), f * (degree + 1));
      roots[f * (degree + 1) + degree] = Math.sqrt(multiplicities[f]);
    }
    return fromValues(like.device, words, [length, degree + 1], "i32");
  });
}

function kernel(x: Tensor, { headDim, degree, expandedDim }: FeaturePlan, backward: boolean): KernelSource {
  const common = {
    constants: { HEAD_DIM: headDim, DEGREE: degree, FEATURES: expandedDim },
    parameters: { count: "u32" } as const,
  };
  const reading = {
    x: { dtype: x.dtype, access: "read" },
    monomials: { dtype: "i32", access: "read" },
  } as const;
  const helpers = `
fn index_of(feature: u32, k: u32) -> u32 { return u32(load_monomials(feature * (DEGREE + 1u) + k)); }
fn root_of(feature: u32) -> f32 { return bitcast<f32>(load_monomials(feature * (DEGREE + 1u) + DEGREE)); }
`;
  if (!backward) {
    return {
      ...common,
      name: "feature-map",
      tensors: { ...reading, phi: { dtype: "f32", access: "write" } },
      body: () => `${helpers}
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let at = id.x + id.y * groups.x * 256u;
  if (at >= P.count) { return; }
  let row = at / FEATURES;
  let feature = at % FEATURES;
  var value = root_of(feature);
  for (var k = 0u; k < DEGREE; k++) { value *= load_x(row * HEAD_DIM + index_of(feature, k)); }
  store_phi(at, value);
}`,
    };
  }
  return {
    ...common,
    name: "feature-map-backward",
    tensors: { ...reading, dphi: { dtype: "f32", access: "read" }, dx: { dtype: x.dtype, access: "write" } },
    body: () => `${helpers}
// One element of dx each: it looks for itself among the factors of all monomials.
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let at = id.x + id.y * groups.x * 256u;
  if (at >= P.count) { return; }
  let row = at / HEAD_DIM;
  let own = at % HEAD_DIM;
  var sum = 0.0;
  for (var feature = 0u; feature < FEATURES; feature++) {
    for (var k = 0u; k < DEGREE; k++) {
      if (index_of(feature, k) != own) { continue; }
      var change = root_of(feature) * load_dphi(row * FEATURES + feature);
      for (var other = 0u; other < DEGREE; other++) {
        if (other != k) { change *= load_x(row * HEAD_DIM + index_of(feature, other)); }
      }
      sum += change;
    }
  }
  store_dx(at, sum);
}`,
  };
}

export const featureMapWebGpu: FeatureMapForward = (plan, x) => {
  const device = webgpuDevice(x);
  const phi = empty([plan.rows, plan.expandedDim], device, "f32");
  device.dispatch(kernel(x, plan, false), {
    tensors: { x, monomials: table(x, plan.headDim, plan.degree), phi },
    parameters: { count: phi.size },
    workgroups: device.spread(Math.ceil(phi.size / 256)),
  });
  return phi;
};

export const featureMapBackwardWebGpu: FeatureMapBackward = (plan, x, upstream) => {
  const device = webgpuDevice(x);
  const dx = empty([plan.rows, plan.headDim], device, x.dtype);
  device.dispatch(kernel(x, plan, true), {
    tensors: { x, monomials: table(x, plan.headDim, plan.degree), dphi: upstream, dx },
    parameters: { count: dx.size },
    workgroups: device.spread(Math.ceil(dx.size / 256)),
  });
  return dx;
};
