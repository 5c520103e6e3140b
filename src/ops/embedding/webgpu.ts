import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { map } from "../../devices/webgpu/map.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { type EmbeddingBackward, type EmbeddingForward, noRow } from "./contract.js";

/** Reading the ids back would stall every call: out of check mode an id that is no row gives NaN. */
const LOOK_UP = `
fn apply(i: u32) -> f32 {
  let width = u32(P.width);
  let id = load_ids(i / width);
  if (id < 0 || id >= i32(P.rows)) { return bitcast<f32>(0x7fc00000u + (i & 1u)); }
  return load_weight(u32(id) * width + i % width);
}`;

export const embeddingForward: EmbeddingForward = (weight, ids) => {
  const [rows, width] = weight.shape;
  const isNoRow = "value < 0 || value >= limit";
  webgpuDevice(weight).refuseWhere(ids, isNoRow, rows, (at, id) => noRow(id, at, rows));
  const out = empty([...ids.shape, width], weight.device, weight.dtype);
  // Both are read by index, whatever strides say.
  const at = (tensor: Tensor) => ({ tensor, strides: out.strides });
  map("embedding", out, { weight: at(weight), ids: at(ids) }, LOOK_UP, { rows, width });
  return out;
};

const kernel = (from: Tensor, to: Tensor): KernelSource => ({
  name: "embedding-backward",
  constants: {},
  tensors: {
    ids: { dtype: "i32", access: "read" },
    dOutput: { dtype: from.dtype, access: "read" },
    dWeight: { dtype: to.dtype, access: "write" },
  },
  parameters: { rows: "u32", width: "u32", count: "u32" },
  body: `
var<workgroup> found: atomic<u32>;
var<workgroup> matches: array<u32, 256>;

// A workgroup for each row of the table. It looks through all ids, 256 at a time, and adds in their order.
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let row = id.x + id.y * groups.x;
  if (row >= P.rows) { return; }
  for (var column0 = 0u; column0 < P.width; column0 += 256u) {
    let column = column0 + lane;
    var sum = 0.0;
    for (var base = 0u; base < P.count; base += 256u) {
      if (lane == 0u) { atomicStore(&found, 0u); }
      workgroupBarrier();
      let k = base + lane;
      var match_here = 0u;
      if (k < P.count) { match_here = select(0u, 1u, load_ids(k) == i32(row)); }
      matches[lane] = match_here;
      if (match_here == 1u) { atomicAdd(&found, 1u); }
      workgroupBarrier();
      if (atomicLoad(&found) > 0u && column < P.width) {
        for (var n = 0u; n < 256u; n++) {
          if (matches[n] == 1u) { sum += load_dOutput((base + n) * P.width + column); }
        }
      }
      workgroupBarrier();
    }
    if (column < P.width) { store_dWeight(row * P.width + column, sum); }
  }
}`,
});

export const embeddingBackward: EmbeddingBackward = (weight, ids, dOutput) => {
  const [rows, width] = weight.shape;
  const device = webgpuDevice(weight);
  const dWeight = empty(weight.shape, device, weight.dtype);
  device.dispatch(kernel(dOutput, dWeight), {
    tensors: { ids, dOutput, dWeight },
    parameters: { rows, width, count: ids.size },
    workgroups: device.spread(rows),
  });
  return dWeight;
};
