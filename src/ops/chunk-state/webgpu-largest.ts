import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { rowsBeginWide } from "../../devices/webgpu/wide.js";
import type { DType } from "../../tensor/dtype.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import type { SequencePlan } from "../power-attention/contract.js";

const kernel = (dtype: DType, wide: boolean): KernelSource => ({
  name: "chunk-largest",
  constants: {},
  tensors: { x: { dtype, access: "read", wide }, largest: { dtype: "f32", access: "write" } },
  parameters: {
    time: "u32",
    heads: "u32",
    members: "u32",
    chunkSize: "u32",
    chunks: "u32",
    states: "u32",
    width: "u32",
    xB: "u32",
    xT: "u32",
    xH: "u32",
  },
  body: () => `
var<workgroup> found: atomic<u32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let state = id.x + id.y * groups.x; // counts b, chunk, key head
  if (state >= P.states) { return; }
  let head = state % P.heads;
  let chunk = (state / P.heads) % P.chunks;
  let b = state / (P.heads * P.chunks);
  let start = chunk * P.chunkSize;
  let end = min(start + P.chunkSize, P.time);
  // Bits of magnitudes compare as the magnitudes do.
  var most = 0u;
  for (var member = 0u; member < P.members; member++) {
    let origin = b * P.xB + start * P.xT + (head * P.members + member) * P.xH;
    ${
      wide
        ? `let octets = P.width / 8u;
    for (var n = lane; n < (end - start) * octets; n += 256u) {
      let eight = load8_x(origin + (n / octets) * P.xT + 8u * (n % octets));
      let four = max(abs(eight.a), abs(eight.b));
      most = max(most, bitcast<u32>(max(max(four.x, four.y), max(four.z, four.w))));
    }`
        : `for (var n = lane; n < (end - start) * P.width; n += 256u) {
      most = max(most, bitcast<u32>(load_x(origin + (n / P.width) * P.xT + n % P.width)) & 0x7fffffffu);
    }`
    }
  }
  atomicMax(&found, most);
  workgroupBarrier();
  if (lane == 0u) { store_largest(state, bitcast<f32>(atomicLoad(&found))); }
}`,
});

/** The largest magnitude of x [B, T, heads, width] in each chunk and key head (all query heads of its group): [B·N·H] f32. */
export function largestOfChunks(plan: SequencePlan, x: Tensor): Tensor {
  const { batch, time, heads, chunkSize, chunks } = plan;
  const device = webgpuDevice(x);
  const states = batch * chunks * heads;
  const [xB, xT, xH] = x.strides;
  const largest = empty([states], device, "f32");
  device.dispatch(kernel(x.dtype, rowsBeginWide(x)), {
    tensors: { x, largest },
    parameters: { time, heads, members: x.shape[2] / heads, chunkSize, chunks, states, width: x.shape[3], xB, xT, xH },
    workgroups: device.spread(states),
  });
  return largest;
}
