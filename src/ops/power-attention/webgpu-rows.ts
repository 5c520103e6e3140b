import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { Access, KernelSource } from "../../devices/webgpu/kernel.js";
import { DTYPE_BYTES, type DType } from "../../tensor/dtype.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { LAYERNORM_EPSILON, type Normalize } from "./contract.js";

/** A row for each group of 32 lanes, two neighbouring elements for each lane at a time. */
export const ROWS = `
var<workgroup> partial: array<f32, 256>;

fn row_sum(value: f32, lane: u32) -> f32 {
  workgroupBarrier();
  partial[lane] = value;
  for (var reach = 16u; reach > 0u; reach /= 2u) {
    workgroupBarrier();
    if ((lane & 31u) < reach) { partial[lane] += partial[lane + reach]; }
  }
  workgroupBarrier();
  return partial[lane & 224u];
}
`;

const SUM = 0;
const LAYERNORM = 1;
const NONE = 2;
const KIND: Record<Normalize, number> = { sum: SUM, layernorm: LAYERNORM, none: NONE };

const tensorOf = (dtype: DType, access: Access = "read") => ({ dtype, access });

function rowsOf(x: Tensor): { rows: number; width: number; workgroups: number[] } {
  const width = x.shape[x.shape.length - 1];
  const rows = x.size / width;
  return { rows, width, workgroups: webgpuDevice(x).spread(Math.ceil(rows / 8)) };
}

const normaliseKernel = (dtype: DType, even: boolean, kind: number): KernelSource => ({
  name: "normalise",
  constants: { EVEN: even, KIND: kind, SUM, LAYERNORM, EPSILON: LAYERNORM_EPSILON },
  tensors: { y: tensorOf("f32"), rowSum: tensorOf("f32", "write"), result: tensorOf(dtype, "write") },
  parameters: { rows: "u32", width: "u32" },
  body: () => `${ROWS}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let row = (id.x + id.y * groups.x) * 8u + lane / 32u;
  let alive = row < P.rows;
  let first = 2u * (lane & 31u);
  var factor = 1.0;
  var shift = 0.0;
  if (KIND == SUM && alive) {
    let sum = load_rowSum(row);
    factor = select(1.0 / sum, 0.0, sum == 0.0);
  }
  if (KIND == LAYERNORM) {
    var sum = 0.0;
    if (alive) { for (var i = lane & 31u; i < P.width; i += 32u) { sum += load_y(row * P.width + i); } }
    shift = row_sum(sum, lane) / f32(P.width);
    var squares = 0.0;
    if (alive) {
      for (var i = lane & 31u; i < P.width; i += 32u) {
        let off = load_y(row * P.width + i) - shift;
        squares += off * off;
      }
    }
    let deviation = sqrt(row_sum(squares, lane) / f32(P.width));
    factor = 1.0 / (deviation + EPSILON);
    if (alive && (lane & 31u) == 0u) { store_rowSum(row, deviation); }
  }
  if (!alive) { return; }
  for (var i = first; i < P.width; i += 64u) {
    let at = row * P.width + i;
    let a = (load_y(at) - shift) * factor;
    if (i + 1u >= P.width) { store_result(at, a); continue; }
    let b = (load_y(at + 1u) - shift) * factor;
    if (EVEN) { store2_result(at, a, b); }
    else { store_result(at, a); store_result(at + 1u, b); }
  }
}`,
});

/**
 * out = normalize(y) in the dtype asked for. `rowSum` holds the sums of weights for "sum"; for "layernorm" the
 * standard deviations are left in it.
 */
export function normalise(kind: Normalize, y: Tensor, rowSum: Tensor, dtype: DType): Tensor {
  const { rows, width, workgroups } = rowsOf(y);
  const result = empty(y.shape, y.device, dtype);
  webgpuDevice(y).dispatch(normaliseKernel(dtype, width % 2 === 0, KIND[kind]), {
    tensors: { y, rowSum, result },
    parameters: { rows, width },
    workgroups,
  });
  return result;
}

const normaliseBackwardKernel = (upstream: DType, output: DType, kind: number): KernelSource => ({
  name: "normalise-backward",
  constants: { KIND: kind, SUM, LAYERNORM, EPSILON: LAYERNORM_EPSILON },
  tensors: {
    upstream: tensorOf(upstream),
    result: tensorOf(output),
    rowSum: tensorOf("f32"),
    dy: tensorOf("f32", "write"),
    dsum: tensorOf("f32", "write"),
  },
  parameters: { rows: "u32", width: "u32" },
  body: () => `${ROWS}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let row = (id.x + id.y * groups.x) * 8u + lane / 32u;
  let alive = row < P.rows;
  var sum = 0.0;
  var dot = 0.0;
  if (alive) {
    for (var i = lane & 31u; i < P.width; i += 32u) {
      let g = load_upstream(row * P.width + i);
      sum += g;
      dot += g * load_result(row * P.width + i);
    }
  }
  let total = row_sum(sum, lane);
  let product = row_sum(dot, lane);
  if (!alive) { return; }
  var factor = 1.0;   // dy = factor · (g − shift − out · pull)
  var shift = 0.0;
  var pull = 0.0;
  var dsum = 0.0;
  if (KIND == SUM) {
    let weights = load_rowSum(row);
    factor = select(1.0 / weights, 0.0, weights == 0.0);
    dsum = -product * factor;
  }
  if (KIND == LAYERNORM) {
    // out = (y − mean) / (deviation + ε): its deviation moves with out · (y − mean) / (n · deviation).
    let deviation = load_rowSum(row);
    factor = 1.0 / (deviation + EPSILON);
    shift = total / f32(P.width);
    if (deviation > 0.0) { pull = product * (deviation + EPSILON) / (f32(P.width) * deviation); }
  }
  for (var i = lane & 31u; i < P.width; i += 32u) {
    let at = row * P.width + i;
    store_dy(at, factor * (load_upstream(at) - shift - load_result(at) * pull));
  }
  if ((lane & 31u) == 0u) { store_dsum(row, dsum); }
}`,
});

/** d(y) and d(sum of weights), f32, from the gradient of the normalised output; best given unrounded, in f32. */
export function normaliseBackward(
  kind: Normalize,
  upstream: Tensor,
  output: Tensor,
  rowSum: Tensor,
): { dy: Tensor; dsum: Tensor } {
  const { rows, width, workgroups } = rowsOf(output);
  const dy = empty(output.shape, output.device, "f32");
  const dsum = empty(output.shape.slice(0, -1), output.device, "f32");
  webgpuDevice(output).dispatch(normaliseBackwardKernel(upstream.dtype, output.dtype, KIND[kind]), {
    tensors: { upstream, result: output, rowSum, dy, dsum },
    parameters: { rows, width },
    workgroups,
  });
  return { dy, dsum };
}

const finishKernel = (from: DType, dtype: DType, even: boolean, dots: boolean): KernelSource => ({
  name: "finish-gradient",
  constants: { EVEN: even, CAST: from !== "f32" || dtype !== "f32", DOTS: dots },
  tensors: {
    dx: tensorOf("f32"),
    x: tensorOf(from),
    result: tensorOf(dtype, "write"),
    products: tensorOf("f32", "write"),
  },
  parameters: { rows: "u32", width: "u32", time: "u32", heads: "u32", xB: "u32", xT: "u32", xH: "u32", factor: "f32" },
  body: () => `${ROWS}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let row = (id.x + id.y * groups.x) * 8u + lane / 32u;
  let alive = row < P.rows;
  if (DOTS) {
    var dot = 0.0;
    if (alive) {
      let x0 = (row / (P.heads * P.time)) * P.xB + ((row / P.heads) % P.time) * P.xT + (row % P.heads) * P.xH;
      for (var i = lane & 31u; i < P.width; i += 32u) { dot += load_x(x0 + i) * load_dx(row * P.width + i); }
    }
    let total = row_sum(dot, lane);
    if (alive && (lane & 31u) == 0u) { store_products(row, P.factor * total); }
  }
  if (!alive || !CAST) { return; }
  for (var i = 2u * (lane & 31u); i < P.width; i += 64u) {
    let at = row * P.width + i;
    let a = load_dx(at);
    if (i + 1u >= P.width) { store_result(at, a); continue; }
    let b = load_dx(at + 1u);
    if (EVEN) { store2_result(at, a, b); }
    else { store_result(at, a); store_result(at + 1u, b); }
  }
}`,
});

/**
 * A gradient accumulated in f32 [B, T, heads, d], in the dtype of `x`; and, where gates want them, the products
 * x_t·dx_t / degree [B, T, heads] that gateGradient takes.
 */
export function finishGradient(
  x: Tensor,
  dx: Tensor,
  degree: number | undefined,
): { result: Tensor; products: Tensor | undefined } {
  const cast = x.dtype !== "f32";
  if (!cast && degree === undefined) return { result: dx, products: undefined };
  const { rows, width, workgroups } = rowsOf(dx);
  const [, time, heads] = dx.shape;
  const [xB, xT, xH] = x.strides;
  const result = cast ? empty(dx.shape, dx.device, x.dtype) : dx;
  const products = degree === undefined ? undefined : empty(dx.shape.slice(0, -1), dx.device, "f32");
  // A buffer may be bound for writing once only: what is not written gets a place of its own.
  const scrap = () => empty([DTYPE_BYTES.f32], dx.device, "f32");
  webgpuDevice(x).dispatch(finishKernel(x.dtype, cast ? x.dtype : "f32", width % 2 === 0, degree !== undefined), {
    tensors: { dx, x, result: cast ? result : scrap(), products: products ?? scrap() },
    parameters: { rows, width, time, heads, xB, xT, xH, factor: 1 / (degree ?? 1) },
    workgroups,
  });
  return { result, products };
}

/** A tensor of zeros. */
export function zerosLike(shape: readonly number[], like: Tensor, dtype: DType): Tensor {
  const out = empty(shape, like.device, dtype);
  if (out.size > 0) webgpuDevice(like).clear(out);
  return out;
}

const rowProductKernel = (x: DType, y: DType): KernelSource => ({
  name: "row-products",
  constants: {},
  tensors: { x: tensorOf(x), y: tensorOf(y), products: tensorOf("f32", "write") },
  parameters: { rows: "u32", width: "u32" },
  body: () => `${ROWS}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let row = (id.x + id.y * groups.x) * 8u + lane / 32u;
  var dot = 0.0;
  if (row < P.rows) {
    for (var i = lane & 31u; i < P.width; i += 32u) { dot += load_x(row * P.width + i) * load_y(row * P.width + i); }
  }
  let total = row_sum(dot, lane);
  if (row < P.rows && (lane & 31u) == 0u) { store_products(row, total); }
}`,
});

/** x·y of each row of two contiguous tensors, f32. */
export function rowProducts(x: Tensor, y: Tensor): Tensor {
  const { rows, width, workgroups } = rowsOf(x);
  const products = empty(x.shape.slice(0, -1), x.device, "f32");
  webgpuDevice(x).dispatch(rowProductKernel(x.dtype, y.dtype), {
    tensors: { x, y, products },
    parameters: { rows, width },
    workgroups,
  });
  return products;
}
