import { webgpuDevice } from "../../devices/webgpu/device.js";
import { type Binding, type KernelSource, keptSource } from "../../devices/webgpu/kernel.js";
import { startsWide, WIDE } from "../../devices/webgpu/wide.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { activationText } from "../elementwise/webgpu.js";
import type { LinearEnd, NormBefore } from "./contract.js";

/** Up to so many rows, a tile of a matrix product would be nearly empty, and reading the weight is all the time. */
const FEW_ROWS = 4;
/** Vectors of a weight's row that a lane reads, about: few, so that a small matrix still occupies the whole GPU. */
const VECTORS = 4;

/** Whether rows of x and weights can be read in vectors, and there are few. */
export function fitsFewRows(x: Tensor, ...weights: Tensor[]): boolean {
  const [rows, inputs] = x.shape;
  const wide = (t: Tensor) => t.strides[1] === 1 && t.strides[0] % WIDE === 0 && startsWide(t);
  const whole = weights.every((weight) => weight.shape[0] > 0 && wide(weight));
  return rows <= FEW_ROWS && inputs > 0 && inputs % WIDE === 0 && wide(x) && whole;
}

/** Elements of rows that workgroup memory keeps while they are normed. */
const NORMED = 3072;

/** Whether the rows can be normed on the way too. */
export function fitsFewRowsNormed(x: Tensor, norm: NormBefore, ...weights: Tensor[]): boolean {
  const vectors = [norm.weight, norm.bias].every((t) => t === undefined || startsWide(t));
  return fitsFewRows(x, ...weights) && x.size <= NORMED && vectors;
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

/** A weight with what its product ends with. */
export interface FewRowsProduct extends LinearEnd {
  weight: Tensor;
}

/** Storage buffers that a dispatch of these products binds. */
export function bindingsOf(products: readonly FewRowsProduct[], norm?: NormBefore): number {
  const own = products.map(({ bias, residual }) => 2 + (bias ? 1 : 0) + (residual ? 1 : 0));
  return own.reduce((a, b) => a + b, 1) + (norm ? 1 : 0) + (norm?.bias ? 1 : 0);
}

/** What workgroups of product n do, from its output `first` on. */
const productText = ({ bias, residual }: FewRowsProduct, n: number) => `
fn finished${n}(row: u32, output: u32, slot: u32) -> f32 {
  var value = sums[row * 256u + slot * LANES];
  ${bias ? `value += load_bias${n}(output);` : ""}
  value = activate${n}(value);
  ${residual ? `value += load_residual${n}(row * P.outputs${n} + output);` : ""}
  return value;
}
fn product${n}(first: u32, lane: u32) {
  let output = min(first + lane / LANES, P.outputs${n} - 1u);
  var sum: array<f32, ROWS>;
  for (var i = 8u * (lane % LANES); i < P.inputs; i += 8u * LANES) {
    let w = load8_weight${n}(output * P.weightRow${n} + i);
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
  if (2u * lane >= AT_ONCE || mine >= P.outputs${n}) { return; }
  for (var row = 0u; row < ROWS; row++) {
    let to = row * P.outputs${n} + mine;
    let a = finished${n}(row, mine, 2u * lane);
    if (mine + 1u >= P.outputs${n}) { store_result${n}(to, a); continue; }
    let b = finished${n}(row, mine + 1u, 2u * lane + 1u);
    if (PAIRS${n}) { store2_result${n}(to, a, b); } else { store_result${n}(to, a); store_result${n}(to + 1u, b); }
  }
}`;

function bodyOf(products: readonly FewRowsProduct[], norm: NormBefore | undefined): string {
  const last = products.length - 1;
  const runs = products.map((_, n) => {
    const run = `{ product${n}((group - P.begin${n}) * AT_ONCE, lane); }`;
    return n === last ? run : `if (group < P.begin${n + 1}) ${run} else `;
  });
  return `
const AT_ONCE = 256u / LANES;
var<workgroup> sums: array<f32, ROWS * 256>;
${activationText(...products.map(({ activation }) => activation))}
${norm ? `fn shift_at(i: u32) -> Eight { return ${norm.bias ? "load8_normBias(i)" : "Eight(vec4f(), vec4f())"}; }${NORM}` : PLAIN}
${products.map(productText).join("\n")}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let group = id.x + id.y * groups.x;
  prepare(lane);
  ${runs.join("")}
}`;
}

function sourceOf(
  x: Tensor,
  products: readonly FewRowsProduct[],
  norm: NormBefore | undefined,
  lanes: number,
): KernelSource {
  const [rows, inputs] = x.shape;
  const constants: KernelSource["constants"] = { ROWS: rows, LANES: lanes };
  const tensors: KernelSource["tensors"] = { x: read(x, true) };
  const parameters: KernelSource["parameters"] = { inputs: "u32", xRow: "u32", epsilon: "f32" };
  if (norm) {
    Object.assign(constants, { INPUTS: inputs, CENTERED: norm.centered });
    tensors.normWeight = read(norm.weight, true);
    if (norm.bias) tensors.normBias = read(norm.bias, true);
  }
  for (const [n, { weight, bias, residual, dtype }] of products.entries()) {
    constants[`PAIRS${n}`] = weight.shape[0] % 2 === 0 || rows === 1;
    tensors[`weight${n}`] = read(weight, true);
    if (bias) tensors[`bias${n}`] = read(bias);
    if (residual) tensors[`residual${n}`] = read(residual);
    tensors[`result${n}`] = { dtype, access: "write" };
    for (const name of ["outputs", "weightRow", "begin"]) parameters[name + n] = "u32";
  }
  const name = `${norm ? "norm-" : ""}linear-few-rows-${products.map(({ activation }) => activation).join("-")}`;
  return { name, constants, tensors, parameters, body: () => bodyOf(products, norm) };
}

/**
 * linear for a few rows, such as one token, with one or more weights side by side: `lanes` invocations read a row of a
 * weight together, each row once and in vectors, and add up their shares.
 */
export function linearFewRows(x: Tensor, products: readonly FewRowsProduct[], norm?: NormBefore): Tensor[] {
  const device = webgpuDevice(x);
  const [rows, inputs] = x.shape;
  const lanes = Math.min(128, Math.max(8, 2 ** Math.ceil(Math.log2(inputs / WIDE / VECTORS))));
  const tensors: Record<string, Tensor> = { x };
  const parameters: Record<string, number> = { inputs, xRow: x.strides[0], epsilon: norm?.epsilon ?? 0 };
  let key = `linear few rows ${rows} ${lanes} ${x.dtype}`;
  if (norm) {
    key += ` ${inputs} ${norm.centered} ${norm.weight.dtype} ${norm.bias?.dtype}`;
    tensors.normWeight = norm.weight;
    if (norm.bias) tensors.normBias = norm.bias;
  }
  let groups = 0;
  const results: Tensor[] = [];
  for (let n = 0; n < products.length; n++) {
    const { weight, bias, activation, residual, dtype } = products[n];
    const outputs = weight.shape[0];
    key += ` ${activation} ${outputs % 2} ${weight.dtype} ${bias?.dtype} ${residual?.dtype} ${dtype}`;
    const result = empty([rows, outputs], device, dtype);
    tensors[`weight${n}`] = weight;
    if (bias) tensors[`bias${n}`] = bias;
    if (residual) tensors[`residual${n}`] = residual;
    tensors[`result${n}`] = result;
    parameters[`outputs${n}`] = outputs;
    parameters[`weightRow${n}`] = weight.strides[0];
    parameters[`begin${n}`] = groups; // its workgroups
    groups += Math.ceil(outputs / (256 / lanes));
    results.push(result);
  }
  const source = keptSource(key, () => sourceOf(x, products, norm, lanes));
  device.dispatch(source, { tensors, parameters, workgroups: device.spread(groups) });
  return results;
}
