import { webgpuDevice } from "../../../devices/webgpu/device.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { GATES } from "../../../devices/webgpu/tiles.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SequencePlan } from "../contract.js";
import { chunkRows } from "./pack.js";

/**
 * How strongly a token weighs, as a power of two, apart from its packed vector: its vector was divided by 2^e, and a
 * gate sum G (from the chunk's start) goes with it.
 *
 *     keys      L_j = p·e_j − G_j·log₂e       the weight of a key at the chunk's end, but for exp(G_end)
 *     queries   L_i = p·e_i + G_i·log₂e       what a query takes from a state, but for scale^p
 */
export interface Levels {
  /** [B, heads, N, rows, 4] f32: L; the largest L so far in the chunk (keys); G·log₂e; 2^(L − the chunk's largest). */
  tokens: Tensor;
  /** [B, H, N] f32: the chunk's largest L; all query heads of a group together. */
  largest: Tensor;
}

/** L of what weighs nothing. */
const NOTHING = -1e30;

const kernel = (constants: Record<string, number | boolean>): KernelSource => ({
  name: "token-levels",
  constants,
  tensors: {
    exponents: { dtype: "f32", access: "read" },
    gates: { dtype: "f32", access: "read" },
    tokens: { dtype: "f32", access: "write" },
    largest: { dtype: "f32", access: "write" },
  },
  parameters: { time: "u32", heads: "u32", members: "u32", chunkSize: "u32", chunks: "u32", lines: "u32" },
  body: `${GATES}
var<workgroup> most: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let line = id.x + id.y * groups.x; // counts b, key head, chunk
  if (line >= P.lines) { return; }
  let chunk = line % P.chunks;
  let head = (line / P.chunks) % P.heads;
  let b = line / (P.chunks * P.heads);
  let start = chunk * P.chunkSize;
  let count = min(P.chunkSize, P.time - start);
  let gate0 = (b * P.heads + head) * P.time + start;
  var before = NOTHING;
  for (var member = 0u; member < P.members; member++) {
    let row0 = (((b * P.heads + head) * P.members + member) * P.chunks + chunk) * CHUNK_ROWS;
    for (var base = 0u; base < CHUNK_ROWS; base += 256u) {
      let i = base + lane;
      var level = NOTHING;
      var gate = 0.0;
      if (i < count) {
        if (GATED) {
          let sum = gate_sum_at(gate0 + i);
          gate = (sum.x + sum.y) * 1.4426950408889634;
        }
        level = DEGREE * load_exponents(row0 + i) + select(-gate, gate, QUERIES);
      }
      var largest = level;
      for (var reach = 1u; reach < 256u; reach *= 2u) {
        most[lane] = largest;
        workgroupBarrier();
        if (lane >= reach) { largest = max(largest, most[lane - reach]); }
        workgroupBarrier();
      }
      most[lane] = largest;
      workgroupBarrier();
      largest = max(largest, before);
      before = max(before, most[255]);
      workgroupBarrier();
      if (i < CHUNK_ROWS) {
        let at = 4u * (row0 + i);
        store2_tokens(at, level, largest);
        store2_tokens(at + 2u, gate, 0.0);
      }
    }
  }
  if (lane == 0u) { store_largest(line, before); }
  for (var member = 0u; member < P.members; member++) {
    let row0 = (((b * P.heads + head) * P.members + member) * P.chunks + chunk) * CHUNK_ROWS;
    for (var i = lane; i < CHUNK_ROWS; i += 256u) {
      let at = 4u * (row0 + i);
      store_tokens(at + 3u, exp2(max(load_tokens(at) - before, -200.0)));
    }
  }
}`,
});

/** `exponents` as packRows gives them for keys or queries, `gates` as gateSums does. */
export function levels(plan: SequencePlan, side: "queries" | "keys", exponents: Tensor, gates: Tensor): Levels {
  const { batch, time, queryHeads, heads, chunkSize, chunks, degree, gated } = plan;
  const device = webgpuDevice(exponents);
  const lines = batch * heads * chunks;
  const result = {
    tokens: empty([exponents.size, 4], device, "f32"),
    largest: empty([batch, heads, chunks], device, "f32"),
  };
  device.dispatch(
    kernel({
      GATED: gated,
      QUERIES: side === "queries",
      DEGREE: degree,
      CHUNK_ROWS: chunkRows(plan),
      NOTHING,
    }),
    {
      tensors: { exponents, gates, ...result },
      parameters: { time, heads, members: side === "queries" ? queryHeads / heads : 1, chunkSize, chunks, lines },
      workgroups: device.spread(lines),
    },
  );
  return result;
}
