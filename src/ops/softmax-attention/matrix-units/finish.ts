import { webgpuDevice } from "../../../devices/webgpu/device.js";
import { each } from "../../../devices/webgpu/each.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { WIDE } from "../../../devices/webgpu/wide.js";
import type { DType } from "../../../tensor/dtype.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import { fours } from "./text.js";

/** Eight elements a lane, of all rows in order. */
const kernel = (dtype: DType, wide: boolean): KernelSource => ({
  name: "unpack-rows",
  constants: {},
  tensors: {
    sums: fours,
    table: { dtype: "f32", access: "read" },
    result: { dtype, access: "write", wide },
  },
  parameters: {
    ...{ count: "u32", octets: "u32", sumOctets: "u32", width: "u32", heads: "u32", time: "u32" },
    ...{ lineRows: "u32", table: "u32" },
  },
  body: () => `
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let n = (id.x + id.y * groups.x) * 256u + lane;
  if (n >= P.count) { return; }
  let octet = n % P.octets;
  let row = n / P.octets; // counts b, t, head
  let t = (row / P.heads) % P.time;
  let packed = ((row / P.heads / P.time) * P.heads + row % P.heads) * P.lineRows + t;
  let factor = load_table(P.table + packed);
  let at = 2u * (packed * P.sumOctets + octet);
  let a = factor * bitcast<vec4f>(load4_sums(at));
  let b = factor * bitcast<vec4f>(load4_sums(at + 1u));
  let to = row * P.width + 8u * octet;
  ${
    wide
      ? "store8_result(to, a, b);"
      : each(
          8,
          (k) =>
            `if (8u * octet + ${k}u < P.width) { store_result(to + ${k}u, ${"ab"[Math.floor(k / 4)]}.${"xyzw"[k % 4]}); }`,
        )
  }
}`,
});

/** [B, T, heads, width] in a dtype of packed rows of sums, each times its number of a quantity in a table. */
export function unpackRows(
  sums: Tensor,
  table: Tensor,
  quantity: number,
  shape: readonly number[],
  lineRows: number,
  dtype: DType,
): Tensor {
  const [batch, time, heads, width] = shape;
  const device = webgpuDevice(sums);
  const result = empty(shape, device, dtype);
  const octets = Math.ceil(width / WIDE);
  const count = batch * time * heads * octets;
  device.dispatch(kernel(dtype, width % WIDE === 0), {
    tensors: { sums, table, result },
    parameters: {
      ...{ count, octets, sumOctets: sums.shape[1] / WIDE, width, heads, time, lineRows },
      table: quantity * sums.shape[0],
    },
    workgroups: device.spread(Math.ceil(count / 256)),
  });
  return result;
}
