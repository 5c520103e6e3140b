import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { Binding, KernelSource } from "../../devices/webgpu/kernel.js";
import { empty, scope, type Tensor } from "../../tensor/tensor.js";
import { cast } from "../copy/webgpu.js";
import { absent } from "../power-attention/webgpu-gates.js";
import { ROWS } from "../power-attention/webgpu-rows.js";
import { reduce } from "../reduce/webgpu.js";
import type { NormBackward, NormForward } from "./contract.js";

const read = (x: Tensor): Binding => ({ dtype: x.dtype, access: "read" });

const HEAD = `${ROWS}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let row = (id.x + id.y * groups.x) * 8u + lane / 32u;
  let alive = row < P.rows;
  let first = lane & 31u;
  let start = row * P.width;
`;

export const normForward: NormForward = ({ rows, width, epsilon, centered, dtype }, { x, weight, bias }) => {
  const device = webgpuDevice(x);
  const output = empty(x.shape, device, dtype);
  const statistics = empty([rows, 2], device, "f32");
  const shift = bias ?? absent(x);
  const source: KernelSource = {
    name: "norm",
    constants: { CENTERED: centered, BIAS: bias !== undefined, EVEN: width % 2 === 0 },
    tensors: {
      x: read(x),
      weight: read(weight),
      bias: read(shift),
      statistics: { dtype: "f32", access: "write" },
      result: { dtype, access: "write" },
    },
    parameters: { rows: "u32", width: "u32", epsilon: "f32" },
    body: `
fn scaled(at: u32, c: u32, mean: f32, rstd: f32) -> f32 {
  let value = (load_x(at) - mean) * rstd * load_weight(c);
  if (BIAS) { return value + load_bias(c); }
  return value;
}
${HEAD}
  var mean = 0.0;
  if (CENTERED) {
    var sum = 0.0;
    if (alive) { for (var c = first; c < P.width; c += 32u) { sum += load_x(start + c); } }
    mean = row_sum(sum, lane) / f32(P.width);
  }
  var squares = 0.0;
  if (alive) {
    for (var c = first; c < P.width; c += 32u) {
      let off = load_x(start + c) - mean;
      squares += off * off;
    }
  }
  let rstd = 1.0 / sqrt(row_sum(squares, lane) / f32(P.width) + P.epsilon);
  if (!alive) { return; }
  if (first == 0u) { store2_statistics(2u * row, mean, rstd); }
  for (var c = 2u * first; c < P.width; c += 64u) {
    let a = scaled(start + c, c, mean, rstd);
    if (c + 1u >= P.width) { store_result(start + c, a); continue; }
    let b = scaled(start + c + 1u, c + 1u, mean, rstd);
    if (EVEN) { store2_result(start + c, a, b); }
    else { store_result(start + c, a); store_result(start + c + 1u, b); }
  }
}`,
  };
  device.dispatch(source, {
    tensors: { x, weight, bias: shift, statistics, result: output },
    parameters: { rows, width, epsilon },
    workgroups: device.spread(Math.ceil(rows / 8)),
  });
  return { output, statistics };
};

/** Rows that one invocation adds up of a column; the parts are added afterwards. */
const PART = 128;

export const normBackward: NormBackward = ({ rows, width, centered }, { x, weight, bias }, statistics, dOutput) =>
  scope(() => {
    const device = webgpuDevice(x);
    const dX = empty(x.shape, device, x.dtype);
    const rowsKernel: KernelSource = {
      name: "norm-backward-rows",
      constants: { CENTERED: centered },
      tensors: {
        x: read(x),
        weight: read(weight),
        statistics: read(statistics),
        dOutput: read(dOutput),
        dX: { dtype: x.dtype, access: "write" },
      },
      parameters: { rows: "u32", width: "u32" },
      body: `${HEAD}
  var mean = 0.0;
  var rstd = 0.0;
  var sum = 0.0;
  var product = 0.0;
  if (alive) {
    mean = load_statistics(2u * row);
    rstd = load_statistics(2u * row + 1u);
    for (var c = first; c < P.width; c += 32u) {
      let g = load_dOutput(start + c) * load_weight(c);
      sum += g;
      product += g * (load_x(start + c) - mean) * rstd;
    }
  }
  let meanG = row_sum(sum, lane) / f32(P.width);
  let meanGN = row_sum(product, lane) / f32(P.width);
  if (!alive) { return; }
  for (var c = first; c < P.width; c += 32u) {
    let g = load_dOutput(start + c) * load_weight(c);
    let n = (load_x(start + c) - mean) * rstd;
    store_dX(start + c, rstd * (g - select(0.0, meanG, CENTERED) - n * meanGN));
  }
}`,
    };
    device.dispatch(rowsKernel, {
      tensors: { x, weight, statistics, dOutput, dX },
      parameters: { rows, width },
      workgroups: device.spread(Math.ceil(rows / 8)),
    });
    const parts = Math.max(1, Math.ceil(rows / PART));
    const dW = empty([parts, width], device, "f32");
    const dB = empty([parts, width], device, "f32");
    const columnsKernel: KernelSource = {
      name: "norm-backward-columns",
      constants: { PART },
      tensors: {
        x: read(x),
        statistics: read(statistics),
        dOutput: read(dOutput),
        dW: { dtype: "f32", access: "write" },
        dB: { dtype: "f32", access: "write" },
      },
      parameters: { rows: "u32", width: "u32", parts: "u32" },
      body: `
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let c = id.x;
  let part = id.y + id.z * groups.y;
  if (c >= P.width || part >= P.parts) { return; }
  var weights = 0.0;
  var biases = 0.0;
  for (var row = part * PART; row < min(P.rows, (part + 1u) * PART); row++) {
    let d = load_dOutput(row * P.width + c);
    weights += d * (load_x(row * P.width + c) - load_statistics(2u * row)) * load_statistics(2u * row + 1u);
    biases += d;
  }
  store_dW(part * P.width + c, weights);
  store_dB(part * P.width + c, biases);
}`,
    };
    device.dispatch(columnsKernel, {
      tensors: { x, statistics, dOutput, dW, dB },
      parameters: { rows, width, parts },
      workgroups: [Math.ceil(width / 64), ...device.spread(parts)],
    });
    const total = (partial: Tensor, like: Tensor) => cast(reduce("sum", partial, [0]).reshape([width]), like.dtype);
    return { x: dX, weight: total(dW, weight), bias: bias && total(dB, bias) };
  });
