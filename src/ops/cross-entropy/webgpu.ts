import type { WebGpuDevice } from "../../devices/webgpu/device.js";
import { webgpuDevice } from "../../devices/webgpu/device.js";
import { each } from "../../devices/webgpu/each.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { rowsAreWide, WIDE } from "../../devices/webgpu/wide.js";
import type { DType } from "../../tensor/dtype.js";
import { empty } from "../../tensor/tensor.js";
import { type CrossEntropyRows, type LogitsLayout, noClass } from "./contract.js";

/**
 * Large blocks in x's own format. Rows begin where vectors can, and where there are many classes they fill whole tiles of
 * the products around.
 */
export const logitsInVectors: LogitsLayout = {
  bytes: (device) => Math.min(600 * 2 ** 20, (device as WebGpuDevice).gpu.limits.maxStorageBufferBindingSize),
  asX: true,
  columns: (classes) => {
    const step = classes < 1024 ? WIDE : 128;
    return Math.ceil(classes / step) * step;
  },
};

/** What an invocation sees of a row at a time. */
const COMPONENTS = ["x.a.x", "x.a.y", "x.a.z", "x.a.w", "x.b.x", "x.b.y", "x.b.z", "x.b.w"];

function kernel(dtype: DType, gradient: boolean, wide: boolean): KernelSource {
  const values = wide ? COMPONENTS : ["x"];
  const eachValue = (line: (value: string, c: string, j: number) => string) =>
    each(values.length, (j) => line(values[j], `(c + ${j}u)`, j));
  const put = wide
    ? "store8_logits(start + c, vec4f(d_0, d_1, d_2, d_3), vec4f(d_4, d_5, d_6, d_7));"
    : "store_logits(start + c, d_0);";
  return {
    name: "cross-entropy",
    constants: { GRADIENT: gradient, AT_ONCE: values.length },
    tensors: {
      logits: { dtype, access: gradient ? "write" : "read", wide },
      targets: { dtype: "i32", access: "read" },
      losses: { dtype: "f32", access: "write" },
    },
    parameters: { rows: "u32", columns: "u32", classes: "u32", scale: "f32" },
    body: () => `
var<workgroup> partial: array<f32, 256>;
var<workgroup> wanted_logit: f32;

fn all_sum(value: f32, lane: u32) -> f32 {
  workgroupBarrier();
  partial[lane] = value;
  for (var reach = 128u; reach > 0u; reach /= 2u) {
    workgroupBarrier();
    if (lane < reach) { partial[lane] += partial[lane + reach]; }
  }
  workgroupBarrier();
  return partial[0];
}
fn all_max(value: f32, lane: u32) -> f32 {
  workgroupBarrier();
  partial[lane] = value;
  for (var reach = 128u; reach > 0u; reach /= 2u) {
    workgroupBarrier();
    if (lane < reach) { partial[lane] = max(partial[lane], partial[lane + reach]); }
  }
  workgroupBarrier();
  return partial[0];
}
fn values_at(at: u32) -> ${wide ? "Eight" : "f32"} { return load${wide ? 8 : ""}_logits(at); }

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let row = id.x + id.y * groups.x;
  if (row >= P.rows) { return; }
  let start = row * P.columns;
  let wanted = load_targets(row);
  // One look at the logits for both: a sum of exponentials is scaled down whenever a larger logit turns up.
  var own = -3.0e38;
  var sum = 0.0;
  for (var c = AT_ONCE * lane; c < P.classes; c += AT_ONCE * 256u) {
    let x = values_at(start + c);
    var largest = own;
    ${eachValue(
      (value, c) => `if (${c} < P.classes) { largest = max(largest, ${value}); }
    if (i32(${c}) == wanted) { wanted_logit = ${value}; }`,
    )}
    sum *= exp(own - largest);
    own = largest;
    ${eachValue((value, c) => `if (${c} < P.classes) { sum += exp(${value} - own); }`)}
  }
  let top = all_max(own, lane);
  let total = all_sum(sum * exp(own - top), lane);
  if (lane == 0u) {
    // A target that is no class gives NaN: out of check mode finding it would stall every call.
    var loss = 0.0;
    if (wanted >= i32(P.classes) || wanted < -1) { loss = bitcast<f32>(0x7fc00000u + (row & 1u)); }
    else if (wanted >= 0) { loss = log(total) + top - wanted_logit; }
    store_losses(row, loss);
  }
  if (!GRADIENT) { return; }
  let factor = select(P.scale, 0.0, wanted < 0);
  for (var c = AT_ONCE * lane; c < P.columns; c += AT_ONCE * 256u) {
    let x = values_at(start + c);
    ${eachValue((value, c, j) => {
      const share = `exp(${value} - top) / total - select(0.0, 1.0, i32(${c}) == wanted)`;
      return `let d_${j} = select(0.0, factor * (${share}), ${c} < P.classes);`;
    })}
    ${gradient ? put : ""}
  }
}`,
  };
}

export const crossEntropyRows: CrossEntropyRows = (logits, targets, classes, scale) => {
  const [rows, columns] = logits.shape;
  const device = webgpuDevice(logits);
  const isNoClass = "value < -1 || value >= limit";
  device.refuseWhere(targets, isNoClass, classes, (at, target) => noClass(target, at, classes));
  const losses = empty([rows], device, "f32");
  const wide = rowsAreWide(columns, logits);
  device.dispatch(kernel(logits.dtype, scale !== undefined, wide), {
    tensors: { logits, targets, losses },
    parameters: { rows, columns, classes, scale: scale ?? 0 },
    workgroups: device.spread(rows),
  });
  return losses;
};
