import { webgpuDevice } from "../../../devices/webgpu/device.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import { largestOfChunks } from "../../chunk-state/webgpu-largest.js";
import type { SequencePlan } from "../contract.js";
import { absent } from "../webgpu-gates.js";

const kernel = (constants: { VALUES: boolean }): KernelSource => ({
  name: "balance-gradients",
  constants,
  tensors: {
    values: { dtype: "f32", access: "read" },
    dy: { dtype: "f32", access: "read" },
    dsum: { dtype: "f32", access: "read" },
    largest: { dtype: "f32", access: "write" },
  },
  parameters: { count: "u32" },
  body: () => `
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let i = (id.x + id.y * groups.x) * 256u + lane;
  if (i >= P.count) { return; }
  let dy = load_dy(i);
  var most = 0.0;
  if (dy > 0.0) { most = min(load_dsum(i) / dy, 1e38); }
  if (VALUES) { most = max(most, load_values(i)); }
  store_largest(i, most);
}`,
});

/**
 * [B·N·H] f32: the largest of each chunk's values, or of the gradients of sums over those of y where that is more. Whoever
 * calls an operation may give the two gradients any sizes; with sums divided by this, a row of both fits one power of two.
 */
export function balanced(plan: SequencePlan, v: Tensor | undefined, dy: Tensor, dsum: Tensor): Tensor {
  const device = webgpuDevice(dy);
  const count = plan.batch * plan.chunks * plan.heads;
  const largest = empty([count], device, "f32");
  device.dispatch(kernel({ VALUES: v !== undefined }), {
    tensors: {
      values: v ? largestOfChunks(plan, v) : absent(dy),
      dy: largestOfChunks(plan, dy),
      dsum: largestOfChunks(plan, dsum.reshape([...dsum.shape, 1])),
      largest,
    },
    parameters: { count },
    workgroups: device.spread(Math.ceil(count / 256)),
  });
  return largest;
}
