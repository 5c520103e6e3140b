import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { empty, fromValues, type Tensor } from "../../tensor/tensor.js";

/** Bound where a kernel's optional tensor is absent; never read. */
export function absent(like: Tensor): Tensor {
  const { device } = like;
  return webgpuDevice(like).constant("absent", () => fromValues(device, [0], [1], "f32"));
}

interface Gated {
  readonly batch: number;
  readonly time: number;
  readonly heads: number;
  readonly chunkSize: number;
  readonly chunks: number;
  readonly gated: boolean;
}

/** Sums of log gates as pairs (whole, rest), rest in [0, 1), which keep their digits however long they get. */
export const GATE_ADDITION = `
fn add(a: vec2f, b: vec2f) -> vec2f {
  let rest = a.y + b.y;
  let carry = floor(rest);
  return vec2f(a.x + b.x + carry, rest - carry);
}

// The bits are compared, not the values: arithmetic on an infinity is the driver's to define.
fn gate_pair(value: f32) -> vec2f {
  let bits = bitcast<u32>(value);
  if (bits > 0xc3000000u && bits <= 0xff800000u) { return vec2f(-128.0, 0.0); }
  let whole = floor(value);
  return vec2f(whole, value - whole);
}
`;

const gateSumKernel: KernelSource = {
  name: "gate-sum",
  constants: {},
  tensors: { logG: { dtype: "f32", access: "read" }, gates: { dtype: "f32", access: "write" } },
  parameters: { time: "u32", heads: "u32", chunkSize: "u32", chunks: "u32" },
  body: () => `
${GATE_ADDITION}
var<workgroup> sums: array<vec2f, 256>;

// One workgroup for each chunk of each head: an inclusive running sum, 256 tokens at a time.
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  let chunk = id.x;
  let head = id.y;
  let start = chunk * P.chunkSize;
  let end = min(start + P.chunkSize, P.time);
  var before = vec2f(0);
  for (var base = start; base < end; base += 256u) {
    let t = base + lane;
    var sum = vec2f(0);
    if (t < end) { sum = gate_pair(load_logG((id.z * P.time + t) * P.heads + head)); }
    for (var reach = 1u; reach < 256u; reach *= 2u) {
      sums[lane] = sum;
      workgroupBarrier();
      if (lane >= reach) { sum = add(sums[lane - reach], sum); }
      workgroupBarrier();
    }
    sum = add(before, sum);
    if (t < end) { store2_gates(2u * ((id.z * P.heads + head) * P.time + t), sum.x, sum.y); }
    sums[lane] = sum;
    workgroupBarrier();
    before = sums[255];
    workgroupBarrier();
  }
}`,
};

/** [B, H, T, 2] f32: sums of log gates from the start of each chunk, as GATES reads them; absent where not gated. */
export function gateSums(plan: Gated, logG: Tensor | undefined, like: Tensor): Tensor {
  if (!logG) return absent(like);
  const { batch, time, heads, chunkSize, chunks } = plan;
  const gates = empty([batch, heads, time, 2], like.device, "f32");
  webgpuDevice(like).dispatch(gateSumKernel, {
    tensors: { logG, gates },
    parameters: { time, heads, chunkSize, chunks },
    workgroups: [chunks, heads, batch],
  });
  return gates;
}

const TERM = `
fn term(b: u32, t: u32, head: u32) -> f32 {
  var value = 0.0;
  if (FROM_QUERIES) {
    let at = ((b * P.time + t) * P.heads + head) * P.group;
    for (var m = 0u; m < P.group; m++) { value += load_fromQueries(at + m); }
  }
  if (FROM_KEYS) { value -= load_fromKeys((b * P.time + t) * P.heads + head); }
  return value;
}
`;

/** All that the tokens of each block receive, [B, blocks, H]. */
const gateTotalsKernel = (constants: { FROM_QUERIES: boolean; FROM_KEYS: boolean }): KernelSource => ({
  name: "gate-totals",
  constants,
  tensors: {
    fromQueries: { dtype: "f32", access: "read" },
    fromKeys: { dtype: "f32", access: "read" },
    totals: { dtype: "f32", access: "write" },
  },
  parameters: { time: "u32", heads: "u32", group: "u32", chunkSize: "u32", chunks: "u32" },
  body: () => `
var<workgroup> sums: array<f32, 256>;
${TERM}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  let start = id.x * P.chunkSize;
  let end = min(start + P.chunkSize, P.time);
  var total = 0.0;
  for (var t = start + lane; t < end; t += 256u) { total += term(id.z, t, id.y); }
  sums[lane] = total;
  for (var reach = 128u; reach > 0u; reach /= 2u) {
    workgroupBarrier();
    if (lane < reach) { sums[lane] += sums[lane + reach]; }
  }
  if (lane == 0u) { store_totals((id.z * P.chunks + id.x) * P.heads + id.y, sums[0]); }
}`,
});

const gateGradientKernel = (constants: {
  FROM_QUERIES: boolean;
  FROM_KEYS: boolean;
  PREFIX: boolean;
  PER_CHUNK: boolean;
  CLOSED: boolean;
  /** The chunks are blocks of a longer one: perChunk has one value for all, and blocks receive what later ones do too. */
  BLOCKS: boolean;
}): KernelSource => ({
  name: "gate-gradient",
  constants,
  tensors: {
    fromQueries: { dtype: "f32", access: "read" },
    fromKeys: { dtype: "f32", access: "read" },
    perChunk: { dtype: "f32", access: "read" },
    totals: { dtype: "f32", access: "read" },
    dLogG: { dtype: "f32", access: "write" },
  },
  parameters: { time: "u32", heads: "u32", group: "u32", chunkSize: "u32", chunks: "u32" },
  body: () => `
var<workgroup> sums: array<f32, 256>;

${TERM}
fn sum_lanes(value: f32, lane: u32) -> f32 {
  sums[lane] = value;
  workgroupBarrier();
  var total = 0.0;
  for (var k = 0u; k < 256u; k++) { total += sums[k]; }
  workgroupBarrier();
  return total;
}
// One workgroup for each chunk of each head: sums from each token to the chunk's end, 256 tokens at a time.
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  let chunk = id.x;
  let head = id.y;
  let start = chunk * P.chunkSize;
  let end = min(start + P.chunkSize, P.time);
  var after = 0.0;
  // What rounding leaves of a sum of all that is 0 in truth, spread over the tokens: sums that run over many would gather it.
  var drift = 0.0;
  if (PER_CHUNK) { after = load_perChunk(select(id.z * P.chunks + chunk, id.z, BLOCKS) * P.heads + head); }
  if (BLOCKS) {
    var later = 0.0;
    var all = 0.0;
    for (var n = lane; n < P.chunks; n += 256u) {
      let total = load_totals((id.z * P.chunks + n) * P.heads + head);
      all += total;
      later += select(0.0, total, n > chunk);
    }
    after += sum_lanes(later, lane);
    if (CLOSED) { drift = sum_lanes(all, lane); }
  } else if (PREFIX || CLOSED) {
    var total = 0.0;
    for (var t = start + lane; t < end; t += 256u) { total += term(id.z, t, head); }
    let all = sum_lanes(total, lane);
    // What comes before a token is all minus what comes from it on.
    if (PREFIX) { after -= all; }
    if (CLOSED) { drift = all; }
  }
  if ((bitcast<u32>(drift) & 0x7f800000u) == 0x7f800000u) { drift = 0.0; }
  drift /= f32(P.time);
  let blocks = (end - start + 255u) / 256u;
  for (var block = blocks; block > 0u; block--) {
    let t = start + (block - 1u) * 256u + lane;
    var sum = 0.0;
    if (t < end) { sum = term(id.z, t, head); }
    for (var reach = 1u; reach < 256u; reach *= 2u) {
      sums[lane] = sum;
      workgroupBarrier();
      if (lane + reach < 256u) { sum += sums[lane + reach]; }
      workgroupBarrier();
    }
    sum += after;
    if (t < end) { store_dLogG((id.z * P.time + t) * P.heads + head, sum - drift * f32(P.time - t)); }
    sums[lane] = sum;
    workgroupBarrier();
    after = sums[0];
    workgroupBarrier();
  }
}`,
});

/** Tokens of a block of a long chunk. */
const BLOCK = 1024;

/**
 * Gradient of logG [B, T, H] from what each token's sum G_t receives. φ and s^p are homogeneous of degree p, so that is
 * q_t·dq_t / p − k_t·dk_t / p, given as `queries` [B, T, Hq] and `keys` [B, T, H]; G sums logG from the chunk's start,
 * so logG_t collects what arrives from t on. `perChunk` [B, N, H] is what each chunk's G_end receives; with `prefix`
 * it receives all that the keys give up. `closed`: what queries receive is all that keys give up, since no state
 * enters or leaves. Then it adds up to 0, and what rounding leaves of that is taken out again, evenly from all tokens: of errors that are
 * alike everywhere this takes the part that grows with the length, and √3 off what remains.
 */
export function gateGradient(
  plan: Gated & { readonly queryHeads: number },
  like: Tensor,
  parts: { queries?: Tensor; keys?: Tensor; perChunk?: Tensor; prefix?: boolean; closed?: boolean },
): Tensor {
  const { batch, time, heads, queryHeads } = plan;
  const device = webgpuDevice(like);
  const none = absent(like);
  const sources = { FROM_QUERIES: parts.queries !== undefined, FROM_KEYS: parts.keys !== undefined };
  const from = { fromQueries: parts.queries ?? none, fromKeys: parts.keys ?? none };
  // One long chunk would be one workgroup for each head.
  const blocks = plan.chunks === 1 && time > 2 * BLOCK && !parts.prefix;
  const { chunkSize, chunks } = blocks ? { chunkSize: BLOCK, chunks: Math.ceil(time / BLOCK) } : plan;
  const parameters = { time, heads, group: queryHeads / heads, chunkSize, chunks };
  const workgroups = [chunks, heads, batch];
  const totals = blocks ? empty([batch, chunks, heads], device, "f32") : none;
  if (blocks) device.dispatch(gateTotalsKernel(sources), { tensors: { ...from, totals }, parameters, workgroups });
  const dLogG = empty([batch, time, heads], device, "f32");
  const kinds = {
    ...{ PREFIX: parts.prefix ?? false, PER_CHUNK: parts.perChunk !== undefined },
    ...{ CLOSED: parts.closed ?? false, BLOCKS: blocks },
  };
  device.dispatch(gateGradientKernel({ ...sources, ...kinds }), {
    tensors: { ...from, perChunk: parts.perChunk ?? none, totals, dLogG },
    parameters,
    workgroups,
  });
  return dLogG;
}
