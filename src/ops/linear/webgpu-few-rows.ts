import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { Binding, KernelSource } from "../../devices/webgpu/kernel.js";
import { startsWide, WIDE } from "../../devices/webgpu/wide.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { activationText } from "../elementwise/webgpu.js";
import type { LinearEnd, NormBefore } from "./contract.js";

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

/** Elements of rows that workgroup memory keeps while they are normed. */
const NORMED = 3072;

/** Whether the rows can be normed on the way too. */
export function fitsFewRowsNormed(x: Tensor, weight: Tensor, norm: NormBefore): boolean {
  const vectors = [norm.weight, norm.bias].every((t) => t === undefined || startsWide(t));
  return fitsFewRows(x, weight) && x.size <= NORMED && vectors;
}

/** The rows of x, normed, in workgroup memory: each workgroup makes them for itself, which is less than another dispatch. */
const NORM = `
var<workgroup> normed: array<vec4f, ROWS * INPUTS / 4u>;
fn all_sum(value: f32, lane: u32) -> f32 {
  workgroupBarrier();
  sums[lane] = value;
  for (var reach = 128u; reach > 0u; reach /= 2u) {
    workgroupBarrier();
    if (lane < reach) { sums[lane] += sums[lane + reach]; }
  }
  workgroupBarrier();
  return sums[0];
}
fn prepare(lane: u32) {
  for (var row = 0u; row < ROWS; row++) {
    let to = row * INPUTS / 4u;
    var sum = 0.0;
    for (var i = 8u * lane; i < INPUTS; i += 2048u) {
      let v = load8_x(row * P.xRow + i);
      normed[to + i / 4u] = v.a;
      normed[to + i / 4u + 1u] = v.b;
      sum += dot(v.a, vec4f(1)) + dot(v.b, vec4f(1));
    }
    var mean = 0.0;
    if (CENTERED) { mean = all_sum(sum, lane) / f32(INPUTS); }
    var squares = 0.0;
    for (var i = 8u * lane; i < INPUTS; i += 2048u) {
      let a = normed[to + i / 4u] - mean;
      let b = normed[to + i / 4u + 1u] - mean;
      squares += dot(a, a) + dot(b, b);
    }
    let rstd = 1.0 / sqrt(all_sum(squares, lane) / f32(INPUTS) + P.epsilon);
    for (var i = 8u * lane; i < INPUTS; i += 2048u) {
      let w = load8_normWeight(i);
      let shift = shift_at(i);
      normed[to + i / 4u] = (normed[to + i / 4u] - mean) * rstd * w.a + shift.a;
      normed[to + i / 4u + 1u] = (normed[to + i / 4u + 1u] - mean) * rstd * w.b + shift.b;
    }
  }
  workgroupBarrier();
}
fn values_at(row: u32, i: u32) -> Eight {
  let at = (row * INPUTS + i) / 4u;
  return Eight(normed[at], normed[at + 1u]);
}`;

const PLAIN = `
fn prepare(lane: u32) {}
fn values_at(row: u32, i: u32) -> Eight { return load8_x(row * P.xRow + i); }`;

const read = (x: Tensor, wide = false): Binding => ({ dtype: x.dtype, access: "read", wide });

/**
 * linear for a few rows, such as one token: `lanes` invocations read a row of the weight together, each row once and in
 * vectors, and add up their shares.
 */
export function linearFewRows(
  x: Tensor,
  weight: Tensor,
  { bias, activation, residual, dtype }: LinearEnd,
  norm?: NormBefore,
): Tensor {
  const device = webgpuDevice(x);
  const [outputs, inputs] = weight.shape;
  const [rows] = x.shape;
  const lanes = Math.min(128, Math.max(8, 2 ** Math.ceil(Math.log2(inputs / WIDE / VECTORS))));
  const result = empty([rows, outputs], device, dtype);
  const source: KernelSource = {
    name: `${norm ? "norm-" : ""}linear-few-rows-${activation}`,
    constants: {
      ROWS: rows,
      ...(norm && { INPUTS: inputs, CENTERED: norm.centered }),
      LANES: lanes,
      PAIRS: outputs % 2 === 0 || rows === 1,
      BIAS: bias !== undefined,
      RESIDUAL: residual !== undefined,
    },
    tensors: {
      x: read(x, true),
      weight: read(weight, true),
      ...(norm && { normWeight: read(norm.weight, true) }),
      ...(norm?.bias && { normBias: read(norm.bias, true) }),
      ...(bias && { bias: read(bias) }),
      ...(residual && { residual: read(residual) }),
      result: { dtype, access: "write" },
    },
    parameters: { inputs: "u32", outputs: "u32", xRow: "u32", weightRow: "u32", epsilon: "f32" },
    body: `
const AT_ONCE = 256u / LANES;
var<workgroup> sums: array<f32, ROWS * 256>;
${bias ? "" : "fn load_bias(i: u32) -> f32 { return 0.0; }"}
${residual ? "" : "fn load_residual(i: u32) -> f32 { return 0.0; }"}
${activationText(activation)}
${norm ? `fn shift_at(i: u32) -> Eight { return ${norm.bias ? "load8_normBias(i)" : "Eight(vec4f(), vec4f())"}; }${NORM}` : PLAIN}
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
  prepare(lane);
  var sum: array<f32, ROWS>;
  for (var i = 8u * (lane % LANES); i < P.inputs; i += 8u * LANES) {
    let w = load8_weight(output * P.weightRow + i);
    for (var row = 0u; row < ROWS; row++) {
      let v = values_at(row, i);
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
    tensors: {
      ...{ x, weight, result },
      ...(norm && { normWeight: norm.weight }),
      ...(norm?.bias && { normBias: norm.bias }),
      ...(bias && { bias }),
      ...(residual && { residual }),
    },
    parameters: {
      ...{ inputs, outputs, xRow: x.strides[0], weightRow: weight.strides[0] },
      epsilon: norm?.epsilon ?? 0,
    },
    workgroups: device.spread(Math.ceil(outputs / (256 / lanes))),
  });
  return result;
}
