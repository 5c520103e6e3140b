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
  body: `
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

const gateGradientKernel = (constants: {
  FROM_QUERIES: boolean;
  FROM_KEYS: boolean;
  PREFIX: boolean;
  PER_CHUNK: boolean;
}): KernelSource => ({
  name: "gate-gradient",
  constants,
  tensors: {
    fromQueries: { dtype: "f32", access: "read" },
    fromKeys: { dtype: "f32", access: "read" },
    perChunk: { dtype: "f32", access: "read" },
    dLogG: { dtype: "f32", access: "write" },
  },
  parameters: { time: "u32", heads: "u32", group: "u32", chunkSize: "u32", chunks: "u32" },
  body: `
var<workgroup> sums: array<f32, 256>;

fn term(b: u32, t: u32, head: u32) -> f32 {
  var value = 0.0;
  if (FROM_QUERIES) {
    let at = ((b * P.time + t) * P.heads + head) * P.group;
    for (var m = 0u; m < P.group; m++) { value += load_fromQueries(at + m); }
  }
  if (FROM_KEYS) { value -= load_fromKeys((b * P.time + t) * P.heads + head); }
  return value;
}

// One workgroup for each chunk of each head: sums from each token to the chunk's end, 256 tokens at a time.
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  let chunk = id.x;
  let head = id.y;
  let start = chunk * P.chunkSize;
  let end = min(start + P.chunkSize, P.time);
  var after = 0.0;
  if (PER_CHUNK) { after = load_perChunk((id.z * P.chunks + chunk) * P.heads + head); }
  if (PREFIX) {
    // What comes before a token is all minus what comes from it on.
    var total = 0.0;
    for (var t = start + lane; t < end; t += 256u) { total -= term(id.z, t, head); }
    sums[lane] = total;
    workgroupBarrier();
    for (var k = 0u; k < 256u; k++) { after += sums[k]; }
    workgroupBarrier();
  }
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
    if (t < end) { store_dLogG((id.z * P.time + t) * P.heads + head, sum); }
    sums[lane] = sum;
    workgroupBarrier();
    after = sums[0];
    workgroupBarrier();
  }
}`,
});

/**
 * Gradient of logG [B, T, H] from what each token's sum G_t receives. φ and s^p are homogeneous of degree p, so that is
 * q_t·dq_t / p − k_t·dk_t / p, given as `queries` [B, T, Hq] and `keys` [B, T, H]; G sums logG from the chunk's start,
 * so logG_t collects what arrives from t on. `perChunk` [B, N, H] is what each chunk's G_end receives; with `prefix`
 * it receives all that the keys give up.
 */
export function gateGradient(
  plan: Gated & { readonly queryHeads: number },
  like: Tensor,
  parts: { queries?: Tensor; keys?: Tensor; perChunk?: Tensor; prefix?: boolean },
): Tensor {
  const { batch, time, heads, queryHeads, chunkSize, chunks } = plan;
  const dLogG = empty([batch, time, heads], like.device, "f32");
  const none = absent(like);
  webgpuDevice(like).dispatch(
    gateGradientKernel({
      FROM_QUERIES: parts.queries !== undefined,
      FROM_KEYS: parts.keys !== undefined,
      PREFIX: parts.prefix ?? false,
      PER_CHUNK: parts.perChunk !== undefined,
    }),
    {
      tensors: {
        fromQueries: parts.queries ?? none,
        fromKeys: parts.keys ?? none,
        perChunk: parts.perChunk ?? none,
        dLogG,
      },
      parameters: { time, heads, group: queryHeads / heads, chunkSize, chunks },
      workgroups: [chunks, heads, batch],
    },
  );
  return dLogG;
}
