import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { Binding, KernelSource } from "../../devices/webgpu/kernel.js";
import { startsWide, WIDE } from "../../devices/webgpu/wide.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { activationText } from "../elementwise/webgpu.js";
import type { LinearEnd } from "./contract.js";

/** Up to so many rows, a tile of a matrix product would be nearly empty, and reading the weight is all the time. */
const FEW_ROWS = 4;
/** Vectors of a weight's row that a lane reads, about: few, so that a small matrix still occupies the whole GPU. */
const VECTORS = 4;

/** Whether rows of x and weight can be read in vectors, and there are few. */
export function fitsFewRows(x: Tensor, weight: Tensor): boolean {
  const [rows, inputs] = x.shape;
  const wide = (t: Tensor) => t.strides[1] === 1 && t.strides[0] % WIDE === 0 && startsWide(t);
  return rows <= FEW_ROWS && weight.shape[0] > 0 && inputs > 0 && inputs % WIDE === 0 && wide(x) && wide(weight);
}

const read = (x: Tensor, wide = false): Binding => ({ dtype: x.dtype, access: "read", wide });

/**
 * linear for a few rows, such as one token: `lanes` invocations read a row of the weight together, each row once and in
 * vectors, and add up their shares.
 */
export function linearFewRows(x: Tensor, weight: Tensor, { bias, activation, residual, dtype }: LinearEnd): Tensor {
  const device = webgpuDevice(x);
  const [outputs, inputs] = weight.shape;
  const [rows] = x.shape;
  const lanes = Math.min(128, Math.max(8, 2 ** Math.ceil(Math.log2(inputs / WIDE / VECTORS))));
  const result = empty([rows, outputs], device, dtype);
  const source: KernelSource = {
    name: `linear-few-rows-${activation}`,
    constants: {
      ROWS: rows,
      LANES: lanes,
      PAIRS: outputs % 2 === 0 || rows === 1,
      BIAS: bias !== undefined,
      RESIDUAL: residual !== undefined,
    },
    tensors: {
      x: read(x, true),
      weight: read(weight, true),
      ...(bias && { bias: read(bias) }),
      ...(residual && { residual: read(residual) }),
      result: { dtype, access: "write" },
    },
    parameters: { inputs: "u32", outputs: "u32", xRow: "u32", weightRow: "u32" },
    body: `
const AT_ONCE = 256u / LANES;
var<workgroup> sums: array<f32, ROWS * 256>;
${bias ? "" : "fn load_bias(i: u32) -> f32 { return 0.0; }"}
${residual ? "" : "fn load_residual(i: u32) -> f32 { return 0.0; }"}
${activationText(activation)}
fn finished(row: u32, output: u32, slot: u32) -> f32 {
  var value = sums[row * 256u + slot * LANES];
  if (BIAS) { value += load_bias(output); }
  value = activate(value);
  if (RESIDUAL) { value += load_residual(row * P.outputs + output); }
  return value;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let first = (id.x + id.y * groups.x) * AT_ONCE;
  let output = min(first + lane / LANES, P.outputs - 1u);
  var sum: array<f32, ROWS>;
  for (var i = 8u * (lane % LANES); i < P.inputs; i += 8u * LANES) {
    let w = load8_weight(output * P.weightRow + i);
    for (var row = 0u; row < ROWS; row++) {
      let v = load8_x(row * P.xRow + i);
      sum[row] += dot(w.a, v.a) + dot(w.b, v.b);
    }
  }
  for (var row = 0u; row < ROWS; row++) { sums[row * 256u + lane] = sum[row]; }
  for (var reach = LANES / 2u; reach > 0u; reach /= 2u) {
    workgroupBarrier();
    if (lane % LANES < reach) {
      for (var row = 0u; row < ROWS; row++) { sums[row * 256u + lane] += sums[row * 256u + lane + reach]; }
    }
  }
  workgroupBarrier();
  let mine = first + 2u * lane;
  if (2u * lane >= AT_ONCE || mine >= P.outputs) { return; }
  for (var row = 0u; row < ROWS; row++) {
    let to = row * P.outputs + mine;
    let a = finished(row, mine, 2u * lane);
    if (mine + 1u >= P.outputs) { store_result(to, a); continue; }
    let b = finished(row, mine + 1u, 2u * lane + 1u);
    if (PAIRS) { store2_result(to, a, b); } else { store_result(to, a); store_result(to + 1u, b); }
  }
}`,
  };
  device.dispatch(source, {
    tensors: { x, weight, ...(bias && { bias }), ...(residual && { residual }), result },
    parameters: { inputs, outputs, xRow: x.strides[0], weightRow: weight.strides[0] },
    workgroups: device.spread(Math.ceil(outputs / (256 / lanes))),
  });
  return result;
}
