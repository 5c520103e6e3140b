import { webgpuDevice } from "../../../devices/webgpu/device.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import { runningLargest } from "../../power-attention/matrix-units/levels.js";
import type { Packed } from "../../power-attention/matrix-units/pack.js";
import { HALVES } from "../../power-attention/matrix-units/text.js";
import type { Attended } from "./forward.js";
import { fours, KEY_TABLE, lengthOf, QUERY_TABLE, ROW_TABLE, vectors, WEIGHT_EXPONENT, written } from "./text.js";

/** δ_i = dy_i · out_i of packed gradients, eight lanes a row. */
const deltaKernel = (octets: number): KernelSource => ({
  name: "softmax-delta",
  constants: { OCTETS: octets, ...ROW_TABLE },
  tensors: { dy: vectors, sums: fours, rowTable: { dtype: "f32", access: "read" }, delta: written },
  parameters: { rows: "u32" },
  body: () => `enable f16;
${HALVES}
var<workgroup> partial: array<f32, 256>;
fn wide(word: u32) -> vec2f { return vec2f(halves(word)); }

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let row = (id.x + id.y * groups.x) * 32u + lane / 8u;
  var dot4 = vec4f(0);
  if (row < P.rows) {
    for (var octet = lane % 8u; octet < OCTETS; octet += 8u) {
      let at = row * OCTETS + octet;
      let words = load4_dy(at);
      dot4 += vec4f(wide(words.x), wide(words.y)) * bitcast<vec4f>(load4_sums(2u * at))
        + vec4f(wide(words.z), wide(words.w)) * bitcast<vec4f>(load4_sums(2u * at + 1u));
    }
  }
  partial[lane] = dot4.x + dot4.y + dot4.z + dot4.w;
  workgroupBarrier();
  if (row >= P.rows || lane % 8u != 0u) { return; }
  var total = 0.0;
  for (var k = 0u; k < 8u; k++) { total += partial[lane + k]; }
  store_delta(row, total * load_rowTable(FACTOR * P.rows + row));
}`,
});

/**
 * The powers of two of rows that keep gradients' weights within f16. Exponents of packed rows: a of queries, b of keys, c of values, g of
 * gradients; h the logarithm of a query's largest weight; lengths of packed rows are below 1, and so δ_i in units of 2^g
 * is a mean of numbers below 2^c.
 *
 *     at a query      |P_ij (dy_i·v_j − δ_i) 2^b_j| ≤ 2^(h + 1 + max over j ≤ i of max(b_j + c_j, b_j + log₂|δ_i|))
 *     at a value      P_ij 2^g_i ≤ 2^(the largest h_i + g_i from j on)
 *     at a key        |P_ij 2^g_i (dy_i·v_j − δ_i) 2^a_i| ≤ 2^(1 + the largest h_i + g_i + a_i + max(c_j, log₂|δ_i|) from j on)
 *
 * All are brought to 2^15. One workgroup for each key head: down its tokens for what came before, and up for what comes after.
 */
const kernel: KernelSource = {
  name: "softmax-levels",
  constants: {
    WEIGHT_EXPONENT,
    ...Object.fromEntries(
      Object.entries({ ROW: ROW_TABLE, QUERY: QUERY_TABLE, KEY: KEY_TABLE }).flatMap(([prefix, table]) =>
        Object.entries(table).map(([name, at]) => [`${prefix}_${name}`, at]),
      ),
    ),
  },
  tensors: {
    a: { dtype: "f32", access: "read" },
    b: { dtype: "f32", access: "read" },
    c: { dtype: "f32", access: "read" },
    g: { dtype: "f32", access: "read" },
    rowTable: { dtype: "f32", access: "read" },
    delta: { dtype: "f32", access: "read" },
    queryTable: written,
    keyTable: written,
  },
  parameters: { lines: "u32", lineRows: "u32", members: "u32", queryRows: "u32", keyRows: "u32", scale: "f32" },
  body: () => `
const NOTHING = -1e30;
// Levels of what is smaller than any f32: higher ones lose nothing.
const LOWEST = -126.0;
${runningLargest("vec4f")}
fn log_of(x: f32) -> f32 { return log2(max(abs(x), 1.2e-38)); }
fn store_query(quantity: u32, row: u32, value: f32) { store_queryTable(quantity * P.queryRows + row, value); }
fn store_key(quantity: u32, row: u32, value: f32) { store_keyTable(quantity * P.keyRows + row, value); }

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let line = id.x + id.y * groups.x; // counts b, key head
  if (line >= P.lines) { return; }
  let keyRow0 = line * P.lineRows;
  let blocks = (P.lineRows + 255u) / 256u;
  var before = vec4f(NOTHING);
  for (var block = 0u; block < blocks; block++) {
    let i = 256u * block + lane;
    var own = vec4f(NOTHING);
    if (i < P.lineRows) {
      let b = load_b(keyRow0 + i);
      let c = load_c(keyRow0 + i);
      own = vec4f(b, b + c, NOTHING, NOTHING);
      store_key(KEY_POWER, keyRow0 + i, exp2(b));
      store_key(KEY_VALUE_POWER, keyRow0 + i, exp2(c));
    }
    let largest = max(running_largest(own, lane), before);
    before = max(before, most[255]);
    workgroupBarrier();
    if (i < P.lineRows) {
      for (var member = 0u; member < P.members; member++) {
        let row = (line * P.members + member) * P.lineRows + i;
        let a = load_a(row);
        let g = load_g(row);
        let logSum = load_rowTable(ROW_LEVEL * P.queryRows + row);
        let h = load_rowTable(ROW_HIGHEST * P.queryRows + row);
        let delta = load_delta(row);
        let bound = max(h + 1.0 + max(largest.y, largest.x + log_of(delta)), LOWEST) - WEIGHT_EXPONENT;
        store_query(QUERY_PAIR_LEVEL, row, logSum + bound);
        store_query(QUERY_DELTA, row, delta);
        store_query(QUERY_POWER, row, exp2(a));
        store_query(QUERY_FACTOR, row, P.scale * exp2(g + bound));
        store_query(QUERY_LEVEL, row, logSum - g);
      }
    }
  }
  var after = vec4f(NOTHING);
  for (var block = blocks; block > 0u; block--) {
    // Lane 0 is the last token of a block.
    let i = 256u * block - 1u - lane;
    var own = vec4f(NOTHING);
    if (i < P.lineRows) {
      for (var member = 0u; member < P.members; member++) {
        let row = (line * P.members + member) * P.lineRows + i;
        let level = load_rowTable(ROW_HIGHEST * P.queryRows + row) + load_g(row);
        let pull = level + load_a(row);
        own = max(own, vec4f(level, pull, pull + log_of(load_delta(row)), NOTHING));
      }
    }
    let largest = max(running_largest(own, lane), after);
    after = max(after, most[255]);
    workgroupBarrier();
    if (i < P.lineRows) {
      let level = max(largest.x, LOWEST) - WEIGHT_EXPONENT;
      let pull = max(1.0 + max(largest.y + load_c(keyRow0 + i), largest.z), LOWEST) - WEIGHT_EXPONENT;
      store_key(KEY_LEVEL, keyRow0 + i, level);
      store_key(KEY_PULL, keyRow0 + i, exp2(min(level - pull, -LOWEST)));
      store_key(KEY_FACTOR, keyRow0 + i, P.scale * exp2(pull));
      store_key(KEY_VALUE_FACTOR, keyRow0 + i, exp2(level));
    }
  }
}`,
};

/** Tables [quantities, rows] f32 of packed queries and keys, as gradients want them: see QUERY_TABLE and KEY_TABLE. */
export function softmaxLevels(
  plan: { lines: number; lineRows: number; members: number; scale: number },
  { q, k, v, dy }: { q: Packed; k: Packed; v: Packed; dy: Packed },
  { sums, table: rowTable }: Attended,
): { queryTable: Tensor; keyTable: Tensor } {
  const { lines, lineRows, members, scale } = plan;
  const device = webgpuDevice(sums);
  const queryRows = lines * lineRows;
  const keyRows = queryRows / members;
  const delta = empty([queryRows], device, "f32");
  device.dispatch(deltaKernel(dy.octets), {
    tensors: { dy: dy.values, sums, rowTable, delta },
    parameters: { rows: queryRows },
    workgroups: device.spread(Math.ceil(queryRows / 32)),
  });
  const queryTable = empty([lengthOf(QUERY_TABLE), queryRows], device, "f32");
  const keyTable = empty([lengthOf(KEY_TABLE), keyRows], device, "f32");
  device.dispatch(kernel, {
    tensors: {
      ...{ a: q.exponents, b: k.exponents, c: v.exponents, g: dy.exponents },
      ...{ rowTable, delta, queryTable, keyTable },
    },
    parameters: { lines: lines / members, lineRows, members, queryRows, keyRows, scale },
    workgroups: device.spread(lines / members),
  });
  return { queryTable, keyTable };
}
