import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { map } from "../../devices/webgpu/map.js";
import { startsWide, WIDE } from "../../devices/webgpu/wide.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import type { RotaryPlan, Rotate } from "./contract.js";

const ROTATE = `
fn apply(i: u32) -> f32 {
  let half = u32(P.half);
  let column = i % (2u * half);
  let t = (i / (2u * half * u32(P.heads))) % u32(P.time);
  let angle = t * half + column % half;
  let sine = P.direction * load_sin(angle);
  if (column < half) { return x_of(i) * load_cos(angle) - x_of(i + half) * sine; }
  return x_of(i) * load_cos(angle) + x_of(i - half) * sine;
}`;

/** Eight pairs to an invocation: eight features of the first half, and theirs of the second. */
const EIGHT_PAIRS = `
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let n = id.x + id.y * groups.x * 256u;
  if (n >= P.count) { return; }
  let vectors = P.half / 8u;
  let row = n / vectors;   // (b · time + t) · heads + head
  let column = 8u * (n % vectors);
  let head = row % P.heads;
  let t = (row / P.heads) % P.time;
  let b = row / (P.heads * P.time);
  let at = b * P.xB + t * P.xT + head * P.xH + column;
  let x = load8_x(at);
  let y = load8_x(at + P.half);
  let cosine = load8_cos(t * P.half + column);
  let sine = load8_sin(t * P.half + column);
  let to = 2u * P.half * row + column;
  let turn = P.direction;
  store8_out(to, x.a * cosine.a - turn * y.a * sine.a, x.b * cosine.b - turn * y.b * sine.b);
  store8_out(to + P.half, y.a * cosine.a + turn * x.a * sine.a, y.b * cosine.b + turn * x.b * sine.b);
}`;

function rotateEight(plan: RotaryPlan, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor): void {
  const { time, heads, headDim, direction } = plan;
  const device = webgpuDevice(x);
  const [xB, xT, xH] = x.strides;
  const count = x.size / (2 * WIDE);
  const source: KernelSource = {
    name: "rotary-eight-pairs",
    constants: {},
    tensors: {
      x: { dtype: x.dtype, access: "read", wide: true },
      cos: { dtype: "f32", access: "read", wide: true },
      sin: { dtype: "f32", access: "read", wide: true },
      out: { dtype: x.dtype, access: "write", wide: true },
    },
    parameters: {
      count: "u32",
      half: "u32",
      heads: "u32",
      time: "u32",
      xB: "u32",
      xT: "u32",
      xH: "u32",
      direction: "f32",
    },
    body: () => EIGHT_PAIRS,
  };
  device.dispatch(source, {
    tensors: { x, cos, sin, out },
    parameters: { count, half: headDim / 2, heads, time, xB, xT, xH, direction },
    workgroups: device.spread(Math.ceil(count / 256)),
  });
}

export const rotate: Rotate = (plan, x, cos, sin) => {
  const { time, heads, headDim, direction } = plan;
  const out = empty(x.shape, x.device, x.dtype);
  const rows = x.strides.slice(0, 3).every((step, axis) => step % WIDE === 0 || x.shape[axis] === 1);
  if (headDim % (2 * WIDE) === 0 && rows && [x, cos, sin].every(startsWide)) {
    rotateEight(plan, x, cos, sin, out);
    return out;
  }
  // The tables are read by angle, whatever strides say.
  const table = (tensor: typeof cos) => ({ tensor, strides: out.strides });
  const inputs = { x: { tensor: x, strides: x.strides }, cos: table(cos), sin: table(sin) };
  map("rotary", out, inputs, ROTATE, { half: headDim / 2, heads, time, direction }, { byIndex: true });
  return out;
};
