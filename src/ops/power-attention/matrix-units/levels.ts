import { webgpuDevice } from "../../../devices/webgpu/device.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { GATES } from "../../../devices/webgpu/tiles.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SequencePlan } from "../contract.js";
import { zerosLike } from "../webgpu-rows.js";
import { chunkRows, type Packed } from "./pack.js";

/**
 * How strongly a token weighs, as a power of two, apart from its packed vectors: they were divided by 2^e, and a gate sum G
 * (from the chunk's start) goes with it.
 *
 *     keys      L_j = p·e_j − G_j·log₂e                  the weight of a key at the chunk's end, but for exp(G_end)
 *     queries   L_i = p·e_i + G_i·log₂e + e of dy_i      what a query's gradient gives to a state, but for scale^p
 */
export interface Levels {
  /** [B, heads, N, rows, 4] f32: L; the largest L so far in the chunk (keys); G·log₂e; 2^(L − the chunk's largest). */
  tokens: Tensor;
  /** [B, H, N] f32: the chunk's largest L; all query heads of a group together. */
  largest: Tensor;
}

/** L of what weighs nothing. */
const NOTHING = -1e30;

/** The largest value (f32, or a vector of them) of a workgroup's lanes up to each; until the next call most[255] has that of all. */
export const runningLargest = (type: string) => `
var<workgroup> most: array<${type}, 256>;

fn running_largest(value: ${type}, lane: u32) -> ${type} {
  var largest = value;
  for (var reach = 1u; reach < 256u; reach *= 2u) {
    most[lane] = largest;
    workgroupBarrier();
    if (lane >= reach) { largest = max(largest, most[lane - reach]); }
    workgroupBarrier();
  }
  most[lane] = largest;
  workgroupBarrier();
  return largest;
}
`;

const kernel = (constants: Record<string, number | boolean>): KernelSource => ({
  name: "token-levels",
  constants,
  tensors: {
    exponents: { dtype: "f32", access: "read" },
    gradients: { dtype: "f32", access: "read" },
    gates: { dtype: "f32", access: "read" },
    tokens: { dtype: "f32", access: "write" },
    largest: { dtype: "f32", access: "write" },
  },
  parameters: { time: "u32", heads: "u32", members: "u32", chunkSize: "u32", chunks: "u32", lines: "u32" },
  body: () => `${GATES}${runningLargest("f32")}
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
        if (QUERIES) { level += load_gradients(row0 + i); }
      }
      let largest = max(running_largest(level, lane), before);
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

type Exponents = Pick<Packed, "exponents">;

/** Levels of keys, or of queries with the gradients that arrived at them; `gates` as gateSums gives them. */
export function levels(plan: SequencePlan, x: Exponents, gates: Tensor, gradients?: Exponents): Levels {
  const { batch, time, queryHeads, heads, chunkSize, chunks, degree, gated } = plan;
  const { exponents } = x;
  const queries = gradients !== undefined;
  const device = webgpuDevice(exponents);
  const lines = batch * heads * chunks;
  const result = {
    tokens: empty([exponents.size, 4], device, "f32"),
    largest: empty([batch, heads, chunks], device, "f32"),
  };
  device.dispatch(kernel({ GATED: gated, QUERIES: queries, DEGREE: degree, CHUNK_ROWS: chunkRows(plan), NOTHING }), {
    tensors: { exponents, gradients: gradients?.exponents ?? exponents, gates, ...result },
    parameters: { time, heads, members: queries ? queryHeads / heads : 1, chunkSize, chunks, lines },
    workgroups: device.spread(lines),
  });
  return result;
}

const laterKernel = (constants: Record<string, number | boolean>): KernelSource => ({
  name: "later-levels",
  constants,
  tensors: { tokens: { dtype: "f32", access: "read" }, later: { dtype: "f32", access: "write" } },
  parameters: { members: "u32", chunks: "u32", lines: "u32" },
  body: () => `${runningLargest("f32")}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let line = id.x + id.y * groups.x; // counts b, key head, chunk
  if (line >= P.lines) { return; }
  let chunk = line % P.chunks;
  var after = NOTHING;
  for (var block = (CHUNK_ROWS + 255u) / 256u; block > 0u; block--) {
    // Lane 0 is the last token of a block.
    let i = 256u * block - 1u - lane;
    var largest = NOTHING;
    if (i < CHUNK_ROWS) {
      for (var member = 0u; member < P.members; member++) {
        let row = (((line / P.chunks) * P.members + member) * P.chunks + chunk) * CHUNK_ROWS + i;
        largest = max(largest, load_tokens(4u * row));
      }
    }
    largest = max(running_largest(largest, lane), after);
    after = max(after, most[255]);
    workgroupBarrier();
    if (i < CHUNK_ROWS) { store_later(line * CHUNK_ROWS + i, largest); }
  }
}`,
});

/** f32 [B, H, N, rows]: the largest level of the queries from each token of a chunk on. */
export function laterLevels(plan: SequencePlan, queries: Levels): Tensor {
  const { batch, heads, chunks } = plan;
  const device = webgpuDevice(queries.tokens);
  const lines = batch * heads * chunks;
  const later = empty([lines * chunkRows(plan)], device, "f32");
  device.dispatch(laterKernel({ CHUNK_ROWS: chunkRows(plan), NOTHING }), {
    tensors: { tokens: queries.tokens, later },
    parameters: { members: plan.queryHeads / heads, chunks, lines },
    workgroups: device.spread(lines),
  });
  return later;
}

/** Levels of keys all of length 1: for what needs gates and has no keys. */
export function levelsOfGates(plan: SequencePlan, gates: Tensor): Levels {
  const rows = plan.batch * plan.heads * plan.chunks * chunkRows(plan);
  return levels(plan, { exponents: zerosLike([rows], gates, "f32") }, gates);
}
