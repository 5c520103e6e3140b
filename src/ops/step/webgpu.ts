import { type WebGpuDevice, webgpuDevice } from "../../devices/webgpu/device.js";
import { type KernelSource, keptSource } from "../../devices/webgpu/kernel.js";
import { GATES } from "../../devices/webgpu/tiles.js";
import { rowsAreWide, WIDE } from "../../devices/webgpu/wide.js";
import type { DType } from "../../tensor/dtype.js";
import { noGrad } from "../../tensor/tape.js";
import { empty, scope, type Tensor } from "../../tensor/tensor.js";
import { accumulateFeatures } from "../chunk-state/webgpu-accumulate.js";
import { MONOMIALS, monomialTable } from "../feature-map/webgpu-monomials.js";
import { LAYERNORM_EPSILON, type SequencePlan } from "../power-attention/contract.js";
import { absent, gateSums } from "../power-attention/webgpu-gates.js";
import { scanInPlace } from "../state-scan/webgpu.js";
import type { Carry, FoldTail, StepForward, StepInputs, StepPlan } from "./contract.js";
import { append } from "./webgpu-append.js";

/** Features that a workgroup reads of a state: many workgroups share the work of one query. */
const PART = 128;

/** Columns side by side in a workgroup. */
function columnsOf(valueDim: number): number {
  return 2 ** Math.ceil(Math.log2(valueDim));
}

/** Columns of a state that an invocation reads at a time. */
function columnsAtOnce(plan: { valueDim: number }, s: Tensor): number {
  return rowsAreWide(plan.valueDim, s) ? WIDE : 1;
}

/**
 * partial[part, row, ·] = φ(q_row)ᵀ s and φ(q_row)·z over a part of the features, for the queries (row = token, head of
 * the group) of one key head. Reading s is nearly all of the time.
 */
const readKernel = (q: Tensor, degree: number, columns: number, atOnce: number): KernelSource => ({
  name: "step-read-state",
  constants: { DEGREE: degree, ACROSS: Math.max(1, columns / atOnce), AT_ONCE: atOnce, PART },
  tensors: {
    q: { dtype: q.dtype, access: "read" },
    s: { dtype: "f32", access: "read", wide: atOnce > 1 },
    z: { dtype: "f32", access: "read" },
    monomials: { dtype: "i32", access: "read" },
    results: { dtype: "f32", access: "write" },
  },
  parameters: {
    tokens: "u32",
    heads: "u32",
    group: "u32",
    valueDim: "u32",
    features: "u32",
    rows: "u32",
    qB: "u32",
    qT: "u32",
    qH: "u32",
  },
  body: () => `${MONOMIALS}
// Invocations side by side share a row of s; slices of them take a feature each.
const SLICES = 256u / ACROSS;
${
  atOnce > 1
    ? `alias Values = Eight;
const NOTHING = Eight(vec4f(), vec4f());
fn values_of_s(i: u32) -> Values { return load8_s(i); }
fn plus(x: Values, y: Values) -> Values { return Eight(x.a + y.a, x.b + y.b); }
fn times(factor: f32, x: Values) -> Values { return Eight(factor * x.a, factor * x.b); }
fn put(to: u32, x: Values) {
  for (var j = 0u; j < 4u; j++) { store_results(to + j, x.a[j]); store_results(to + 4u + j, x.b[j]); }
}`
    : `alias Values = f32;
const NOTHING = 0.0;
fn values_of_s(i: u32) -> Values { return load_s(i); }
fn plus(x: Values, y: Values) -> Values { return x + y; }
fn times(factor: f32, x: Values) -> Values { return factor * x; }
fn put(to: u32, x: Values) { store_results(to, x); }`
}
var<workgroup> phi: array<f32, PART>;
var<workgroup> z_terms: array<f32, PART>;
var<workgroup> sums: array<Values, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  let head = id.y;
  let b = id.z;
  let first = id.x * PART;
  let own = monomial(first + lane);
  let state = (b * P.heads + head) * P.features;
  var zOwn = 0.0;
  if (lane < PART && first + lane < P.features) { zOwn = load_z(state + first + lane); }
  let column = AT_ONCE * (lane % ACROSS);
  let slice = lane / ACROSS;
  let count = min(P.features - first, PART);
  for (var n = 0u; n < P.tokens * P.group; n++) {
    let token = n / P.group;
    let queryHead = head * P.group + n % P.group;
    let q0 = b * P.qB + token * P.qT + queryHead * P.qH;
    workgroupBarrier();
    if (lane < PART) {
      var value = own.root;
      for (var k = 0u; k < DEGREE; k++) { value *= load_q(q0 + factor(own, k)); }
      phi[lane] = value;
      z_terms[lane] = value * zOwn;
    }
    workgroupBarrier();
    var sum: Values = NOTHING;
    if (column < P.valueDim) {
      for (var f = slice; f < count; f += SLICES) {
        sum = plus(sum, times(phi[f], values_of_s((state + first + f) * P.valueDim + column)));
      }
    }
    sums[lane] = sum;
    for (var reach = max(SLICES, PART) / 2u; reach > 0u; reach /= 2u) {
      workgroupBarrier();
      if (slice < reach && slice + reach < SLICES) { sums[lane] = plus(sums[lane], sums[lane + reach * ACROSS]); }
      if (lane < reach && lane + reach < PART) { z_terms[lane] += z_terms[lane + reach]; }
    }
    workgroupBarrier();
    let row = (b * P.tokens + token) * P.heads * P.group + queryHead;
    let to = (id.x * P.rows + row) * (P.valueDim + 1u);
    if (slice == 0u && column < P.valueDim) { put(to + column, sums[lane]); }
    if (lane == 0u) { store_results(to + P.valueDim, z_terms[0]); }
  }
}`,
});

/** Each query: the tail's pairs, what its state's parts say, and the normalisation. */
/** Whether scores are products of eight values at a time. */
const scoresAreWide = (q: Tensor, k: Tensor, { headDim }: StepPlan) =>
  rowsAreWide(headDim, q, k) && [0, 1, 2].every((axis) => q.strides[axis] % WIDE === 0 || q.shape[axis] === 1);

const outputKernel = (q: Tensor, wide: boolean, dtype: DType, plan: StepPlan): KernelSource => {
  const columns = columnsOf(plan.valueDim);
  return {
    name: "step-output",
    constants: {
      AT_ONCE: wide ? WIDE : 1,
      DEGREE: plan.degree,
      COLUMNS: columns,
      FOLDED: plan.folded,
      BY_SUM: plan.normalize === "sum",
      LAYERNORM: plan.normalize === "layernorm",
      EPSILON: LAYERNORM_EPSILON,
    },
    tensors: {
      q: { dtype: q.dtype, access: "read", wide },
      k: { dtype: "f32", access: "read", wide },
      v: { dtype: "f32", access: "read" },
      gates: { dtype: "f32", access: "read" },
      results: { dtype: "f32", access: "read" },
      out: { dtype, access: "write" },
    },
    parameters: {
      tokens: "u32",
      heads: "u32",
      group: "u32",
      headDim: "u32",
      valueDim: "u32",
      rows: "u32",
      parts: "u32",
      tail: "u32",
      foldLength: "u32",
      scale: "f32",
      factor: "f32",
      qB: "u32",
      qT: "u32",
      qH: "u32",
    },
    body: () => `${GATES}
${
  wide
    ? `fn product_at(q: u32, k: u32) -> f32 {
  let x = load8_q(q);
  let y = load8_k(k);
  return dot(x.a, y.a) + dot(x.b, y.b);
}`
    : "fn product_at(q: u32, k: u32) -> f32 { return load_q(q) * load_k(k); }"
}
const SLICES = 256u / COLUMNS;
var<workgroup> weights: array<f32, 256>;
var<workgroup> sums: array<f32, 256>;

fn all_sum(value: f32, lane: u32) -> f32 {
  workgroupBarrier();
  sums[lane] = value;
  for (var reach = 128u; reach > 0u; reach /= 2u) {
    workgroupBarrier();
    if (lane < reach) { sums[lane] += sums[lane + reach]; }
  }
  workgroupBarrier();
  return sums[0];
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let row = id.x + id.y * groups.x;
  if (row >= P.rows) { return; }
  let queryHead = row % (P.heads * P.group);
  let head = queryHead / P.group;
  let token = (row / (P.heads * P.group)) % P.tokens;
  let b = row / (P.heads * P.group * P.tokens);
  let q0 = b * P.qB + token * P.qT + queryHead * P.qH;
  let gate0 = (b * P.heads + head) * P.foldLength;
  let column = lane % COLUMNS;
  let slice = lane / COLUMNS;
  let position = P.tail + token;
  let now = gate_sum_at(gate0 + position);
  var y = 0.0;
  var weightSum = 0.0;
  for (var base = 0u; base <= position; base += 256u) {
    let j = base + lane;
    var weight = 0.0;
    if (j <= position) {
      let at = ((b * P.foldLength + j) * P.heads + head) * P.headDim;
      var score = 0.0;
      for (var i = 0u; i < P.headDim; i += AT_ONCE) { score += product_at(q0 + i, at + i); }
      weight = decay(now, gate_sum_at(gate0 + j));
      for (var k = 0u; k < DEGREE; k++) { weight *= P.scale * score; }
    }
    weightSum += weight;
    workgroupBarrier();
    weights[lane] = weight;
    workgroupBarrier();
    if (column < P.valueDim) {
      for (var n = slice; n < 256u && base + n <= position; n += SLICES) {
        y += weights[n] * load_v(((b * P.foldLength + base + n) * P.heads + head) * P.valueDim + column);
      }
    }
  }
  if (FOLDED) {
    let reach = P.factor * decay(now, vec2f(0));
    for (var part = slice; part < P.parts; part += SLICES) {
      let at = (part * P.rows + row) * (P.valueDim + 1u);
      if (column < P.valueDim) { y += reach * load_results(at + column); }
      if (column == 0u) { weightSum += reach * load_results(at + P.valueDim); }
    }
  }
  let total = all_sum(weightSum, lane);
  // Slices of a column come together.
  workgroupBarrier();
  sums[lane] = y;
  workgroupBarrier();
  y = 0.0;
  for (var n = 0u; n < SLICES; n++) { y += sums[n * COLUMNS + column]; }
  let mine = slice == 0u && column < P.valueDim;
  if (BY_SUM) { y = select(y / total, 0.0, total == 0.0); }
  if (LAYERNORM) {
    let mean = all_sum(select(0.0, y, mine), lane) / f32(P.valueDim);
    let off = y - mean;
    let deviation = sqrt(all_sum(select(0.0, off * off, mine), lane) / f32(P.valueDim));
    y = off / (deviation + EPSILON);
  }
  if (mine) { store_out(row * P.valueDim + column, y); }
}`,
  };
};

function readState(device: WebGpuDevice, plan: StepPlan, carry: Carry, q: Tensor): Tensor {
  const { batch, tokens, queryHeads, heads, headDim, valueDim, degree, expandedDim } = plan;
  const parts = Math.ceil(expandedDim / PART);
  const rows = batch * tokens * queryHeads;
  const results = empty([parts, rows, valueDim + 1], device, "f32");
  const [qB, qT, qH] = q.strides;
  const [columns, atOnce] = [columnsOf(valueDim), columnsAtOnce(plan, carry.s!)];
  const source = keptSource(`step read ${q.dtype} ${degree} ${columns} ${atOnce}`, () =>
    readKernel(q, degree, columns, atOnce),
  );
  device.dispatch(source, {
    tensors: { q, s: carry.s!, z: carry.z!, monomials: monomialTable(q, headDim, degree), results },
    parameters: { tokens, heads, group: queryHeads / heads, valueDim, features: expandedDim, rows, qB, qT, qH },
    workgroups: [parts, heads, batch],
  });
  return results;
}

function step(plan: StepPlan, carry: Carry, inputs: StepInputs): Tensor {
  const { batch, tokens, queryHeads, heads, headDim, valueDim, degree, scale, tail, foldLength, folded } = plan;
  const { dtype } = inputs.q;
  const device = webgpuDevice(inputs.q);
  const { gates, q } = append(plan, carry, inputs);
  const results = folded ? readState(device, plan, carry, q) : absent(q);
  const out = empty([batch, tokens, queryHeads, valueDim], device, dtype);
  const rows = batch * tokens * queryHeads;
  const [qB, qT, qH] = q.strides;
  const wide = scoresAreWide(q, carry.k, plan);
  const key = `step output ${q.dtype} ${dtype} ${wide} ${degree} ${columnsOf(valueDim)} ${folded} ${plan.normalize}`;
  const source = keptSource(key, () => outputKernel(q, wide, dtype, plan));
  device.dispatch(source, {
    tensors: { q, k: carry.k, v: carry.v, gates, results, out },
    parameters: {
      tokens,
      heads,
      group: queryHeads / heads,
      headDim,
      valueDim,
      rows,
      parts: folded ? results.shape[0] : 0,
      tail,
      foldLength,
      scale,
      factor: scale ** degree,
      qB,
      qT,
      qH,
    },
    workgroups: device.spread(rows),
    moving: ["tail"],
  });
  return out;
}

export const stepWebGpu: StepForward = (plan, carry, inputs) => noGrad(() => scope(() => step(plan, carry, inputs)));

export const foldTailWebGpu: FoldTail = (plan, carry) =>
  noGrad(() =>
    scope(() => {
      const { batch, heads, headDim, valueDim, degree, expandedDim, tail, folded } = plan;
      const device = webgpuDevice(carry.k);
      const [k, v] = [carry.k, carry.v].map((x) => x.slice(1, 0, tail));
      const dims = { batch, heads, queryHeads: heads, headDim, valueDim, degree, expandedDim };
      const sequence: SequencePlan = { ...dims, scale: 1, gated: true, time: tail, chunkSize: tail, chunks: 1 };
      const gates = gateSums(sequence, carry.logG.slice(1, 0, tail).contiguous(), k);
      const added = {
        s: empty([batch, 1, heads, expandedDim, valueDim], device, "f32"),
        z: empty([batch, 1, heads, expandedDim], device, "f32"),
      };
      accumulateFeatures(sequence, { keys: k, y: v }, gates, added);
      const before = folded ? { s: carry.s, z: carry.z } : {};
      const after = scanInPlace(sequence, "forward", added, gates, before);
      device.copy(after.s, carry.s!);
      device.copy(after.z, carry.z!);
    }),
  );
