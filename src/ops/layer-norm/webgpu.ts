import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { Binding, KernelSource } from "../../devices/webgpu/kernel.js";
import { rowsAreWide, WIDE } from "../../devices/webgpu/wide.js";
import { empty, scope, type Tensor } from "../../tensor/tensor.js";
import { cast } from "../copy/webgpu.js";
import { reduce } from "../reduce/webgpu.js";
import type { NormBackward, NormForward } from "./contract.js";

const read = (x: Tensor, wide = false): Binding => ({ dtype: x.dtype, access: "read", wide });

/**
 * A row for each 32 lanes, whose elements they keep in registers: eight neighbours at a time, or one where rows do not
 * begin where vectors can. ELEMENTS is 8 or 1, TURNS what a lane has of a row.
 */
const ROWS = `
var<workgroup> partial: array<vec2f, 256>;
fn row_sums(value: vec2f, lane: u32) -> vec2f {
  workgroupBarrier();
  partial[lane] = value;
  for (var reach = 16u; reach > 0u; reach /= 2u) {
    workgroupBarrier();
    if ((lane & 31u) < reach) { partial[lane] += partial[lane + reach]; }
  }
  workgroupBarrier();
  return partial[lane & 224u];
}
alias Values = array<f32, ELEMENTS>;
fn column_of(lane: u32, turn: u32) -> u32 { return ELEMENTS * ((lane & 31u) + 32u * turn); }
`;

/** `values_of_x(i)` and, where it is written, `put_x(i, values)`, whatever ELEMENTS is. */
function accessors(name: string, wide: boolean, written = false): string {
  if (!wide) {
    return `fn values_of_${name}(i: u32) -> Values { return array(load_${name}(i)); }
${written ? `fn put_${name}(i: u32, v: Values) { store_${name}(i, v[0]); }` : ""}`;
  }
  return `fn values_of_${name}(i: u32) -> Values {
  let x = load8_${name}(i);
  return array(x.a.x, x.a.y, x.a.z, x.a.w, x.b.x, x.b.y, x.b.z, x.b.w);
}
${written ? `fn put_${name}(i: u32, v: Values) { store8_${name}(i, vec4f(v[0], v[1], v[2], v[3]), vec4f(v[4], v[5], v[6], v[7])); }` : ""}`;
}

function shares(width: number, wide: boolean): { ELEMENTS: number; TURNS: number } {
  const ELEMENTS = wide ? WIDE : 1;
  return { ELEMENTS, TURNS: Math.ceil(width / (32 * ELEMENTS)) };
}

export const normForward: NormForward = ({ rows, width, epsilon, centered, dtype }, { x, weight, bias }) => {
  const device = webgpuDevice(x);
  const output = empty(x.shape, device, dtype);
  const statistics = empty([rows, 2], device, "f32");
  const wide = rowsAreWide(width, x, weight, bias);
  const source: KernelSource = {
    name: "norm",
    constants: { CENTERED: centered, BIAS: bias !== undefined, ...shares(width, wide) },
    tensors: {
      x: read(x, wide),
      weight: read(weight, wide),
      ...(bias && { bias: read(bias, wide) }),
      statistics: { dtype: "f32", access: "write" },
      result: { dtype, access: "write", wide },
    },
    parameters: { rows: "u32", width: "u32", epsilon: "f32" },
    body: `${ROWS}
${accessors("x", wide)}
${accessors("weight", wide)}
${bias ? accessors("bias", wide) : "fn values_of_bias(i: u32) -> Values { return Values(); }"}
${accessors("result", wide, true)}
var<private> row_values: array<Values, TURNS>;
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let row = (id.x + id.y * groups.x) * 8u + lane / 32u;
  let alive = row < P.rows;
  let start = row * P.width;
  var sum = 0.0;
  for (var turn = 0u; turn < TURNS; turn++) {
    let c = column_of(lane, turn);
    if (!alive || c >= P.width) { continue; }
    let v = values_of_x(start + c);
    row_values[turn] = v;
    for (var j = 0u; j < ELEMENTS; j++) { sum += v[j]; }
  }
  var mean = 0.0;
  if (CENTERED) { mean = row_sums(vec2f(sum, 0.0), lane).x / f32(P.width); }
  var squares = 0.0;
  for (var turn = 0u; turn < TURNS; turn++) {
    let c = column_of(lane, turn);
    if (!alive || c >= P.width) { continue; }
    let v = row_values[turn];
    for (var j = 0u; j < ELEMENTS; j++) { squares += (v[j] - mean) * (v[j] - mean); }
  }
  let rstd = 1.0 / sqrt(row_sums(vec2f(squares, 0.0), lane).x / f32(P.width) + P.epsilon);
  if (!alive) { return; }
  if ((lane & 31u) == 0u) { store2_statistics(2u * row, mean, rstd); }
  for (var turn = 0u; turn < TURNS; turn++) {
    let c = column_of(lane, turn);
    if (c >= P.width) { continue; }
    var v = row_values[turn];
    let w = values_of_weight(c);
    let b = values_of_bias(c);
    for (var j = 0u; j < ELEMENTS; j++) {
      v[j] = (v[j] - mean) * rstd * w[j];
      if (BIAS) { v[j] += b[j]; }
    }
    put_result(start + c, v);
  }
}`,
  };
  device.dispatch(source, {
    tensors: { x, weight, ...(bias && { bias }), statistics, result: output },
    parameters: { rows, width, epsilon },
    workgroups: device.spread(Math.ceil(rows / 8)),
  });
  return { output, statistics };
};

/** Workgroups that share the rows of a backward: each adds up its rows' gradients of weight and bias. */
const MOST_PARTS = 512;

export const normBackward: NormBackward = ({ rows, width, centered }, { x, weight, bias }, statistics, dOutput) =>
  scope(() => {
    const device = webgpuDevice(x);
    const dX = empty(x.shape, device, x.dtype);
    const wide = rowsAreWide(width, x, weight, dOutput);
    const parts = Math.max(1, Math.min(MOST_PARTS, Math.ceil(rows / 8)));
    const partials = empty([parts, 2, width], device, "f32");
    const source: KernelSource = {
      name: "norm-backward",
      constants: { CENTERED: centered, PARTS: parts, ...shares(width, wide) },
      tensors: {
        x: read(x, wide),
        weight: read(weight, wide),
        statistics: read(statistics),
        dOutput: read(dOutput, wide),
        dX: { dtype: x.dtype, access: "write", wide },
        partials: { dtype: "f32", access: "write", wide },
      },
      parameters: { rows: "u32", width: "u32", turns: "u32" },
      body: `${ROWS}
${accessors("x", wide)}
${accessors("weight", wide)}
${accessors("dOutput", wide)}
${accessors("dX", wide, true)}
${accessors("partials", wide, true)}
var<workgroup> shared_values: array<Values, 256>;
var<private> normal: array<Values, TURNS>;
var<private> upstream: array<Values, TURNS>;
var<private> weights: array<Values, TURNS>;
var<private> biases: array<Values, TURNS>;

// The sum over the workgroup's eight rows, for its first 32 lanes.
fn eight_rows(value: Values, lane: u32) -> Values {
  workgroupBarrier();
  shared_values[lane] = value;
  workgroupBarrier();
  var total = shared_values[lane & 31u];
  for (var n = 1u; n < 8u; n++) {
    for (var j = 0u; j < ELEMENTS; j++) { total[j] += shared_values[(lane & 31u) + 32u * n][j]; }
  }
  return total;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  for (var n = 0u; n < P.turns; n++) {
    let row = (n * PARTS + id.x) * 8u + lane / 32u;
    let alive = row < P.rows;
    let start = row * P.width;
    var mean = 0.0;
    var rstd = 0.0;
    var sums = vec2f(0);
    if (alive) {
      mean = load_statistics(2u * row);
      rstd = load_statistics(2u * row + 1u);
      for (var turn = 0u; turn < TURNS; turn++) {
        let c = column_of(lane, turn);
        if (c >= P.width) { continue; }
        var v = values_of_x(start + c);
        var g = values_of_dOutput(start + c);
        let w = values_of_weight(c);
        for (var j = 0u; j < ELEMENTS; j++) {
          v[j] = (v[j] - mean) * rstd;
          weights[turn][j] += g[j] * v[j];
          biases[turn][j] += g[j];
          g[j] *= w[j];
          sums += vec2f(g[j], g[j] * v[j]);
        }
        normal[turn] = v;
        upstream[turn] = g;
      }
    }
    let means = row_sums(sums, lane) / f32(P.width);
    for (var turn = 0u; turn < TURNS; turn++) {
      let c = column_of(lane, turn);
      if (!alive || c >= P.width) { continue; }
      var d = upstream[turn];
      for (var j = 0u; j < ELEMENTS; j++) {
        d[j] = rstd * (d[j] - select(0.0, means.x, CENTERED) - normal[turn][j] * means.y);
      }
      put_dX(start + c, d);
    }
  }
  for (var turn = 0u; turn < TURNS; turn++) {
    let weight_sums = eight_rows(weights[turn], lane);
    let bias_sums = eight_rows(biases[turn], lane);
    let c = column_of(lane, turn);
    if (lane < 32u && c < P.width) {
      put_partials(2u * id.x * P.width + c, weight_sums);
      put_partials((2u * id.x + 1u) * P.width + c, bias_sums);
    }
  }
}`,
    };
    device.dispatch(source, {
      tensors: { x, weight, statistics, dOutput, dX, partials },
      parameters: { rows, width, turns: Math.ceil(rows / (8 * parts)) },
      workgroups: [parts],
    });
    const sums = reduce("sum", partials, [0]);
    const take = (n: number, like: Tensor) => {
      const own = sums
        .reshape([2, width])
        .slice(0, n, n + 1)
        .reshape([width]);
      return like.dtype === "f32" ? own : cast(own, like.dtype);
    };
    return { x: dX, weight: take(0, weight), bias: bias && take(1, bias) };
  });
