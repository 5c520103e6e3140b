import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { empty } from "../../tensor/tensor.js";
import { type CrossEntropyRows, noClass } from "./contract.js";

const kernel = (gradient: boolean): KernelSource => ({
  name: "cross-entropy",
  constants: { GRADIENT: gradient },
  tensors: {
    logits: { dtype: "f32", access: "write" },
    targets: { dtype: "i32", access: "read" },
    losses: { dtype: "f32", access: "write" },
  },
  parameters: { rows: "u32", classes: "u32", scale: "f32" },
  body: `
var<workgroup> partial: array<f32, 256>;

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

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let row = id.x + id.y * groups.x;
  if (row >= P.rows) { return; }
  let start = row * P.classes;
  var own = -3.0e38;
  for (var c = lane; c < P.classes; c += 256u) { own = max(own, load_logits(start + c)); }
  let top = all_max(own, lane);
  var sum = 0.0;
  for (var c = lane; c < P.classes; c += 256u) { sum += exp(load_logits(start + c) - top); }
  let total = all_sum(sum, lane);
  let wanted = load_targets(row);
  if (lane == 0u) {
    // A target that is no class gives NaN: out of check mode finding it would stall every call.
    var loss = 0.0;
    if (wanted >= i32(P.classes) || wanted < -1) { loss = bitcast<f32>(0x7fc00000u + (row & 1u)); }
    else if (wanted >= 0) { loss = log(total) + top - load_logits(start + u32(wanted)); }
    store_losses(row, loss);
  }
  workgroupBarrier();
  if (!GRADIENT) { return; }
  let factor = select(P.scale, 0.0, wanted < 0);
  for (var c = lane; c < P.classes; c += 256u) {
    let share = exp(load_logits(start + c) - top) / total;
    store_logits(start + c, factor * (share - select(0.0, 1.0, i32(c) == wanted)));
  }
}`,
});

export const crossEntropyRows: CrossEntropyRows = (logits, targets, scale) => {
  const [rows, classes] = logits.shape;
  const device = webgpuDevice(logits);
  const isNoClass = "value < -1 || value >= limit";
  device.refuseWhere(targets, isNoClass, classes, (at, target) => noClass(target, at, classes));
  const losses = empty([rows], device, "f32");
  device.dispatch(kernel(scale !== undefined), {
    tensors: { logits, targets, losses },
    parameters: { rows, classes, scale: scale ?? 0 },
    workgroups: device.spread(rows),
  });
  return losses;
};
