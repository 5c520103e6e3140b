import { webgpuDevice } from "../../devices/webgpu/device.js";
import { type Binding, type KernelSource, keptSource } from "../../devices/webgpu/kernel.js";
import type { DType } from "../../tensor/dtype.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { beside } from "../power-attention/views.js";
import { absent, GATE_ADDITION } from "../power-attention/webgpu-gates.js";
import type { Carry, StepInputs, StepPlan } from "./contract.js";
import { turned } from "./turn.js";

const read = (dtype: DType): Binding => ({ dtype, access: "read" });
const WRITTEN: Binding = { dtype: "f32", access: "write" };

/** Keys, values and queries as they come. */
const AS_GIVEN = `
fn key_at(at: u32, token: u32, i: u32) -> f32 { return load_k(at + i); }
fn value_at(at: u32, i: u32) -> f32 { return load_v(at + i); }
fn put_queries(head: u32, b: u32, lane: u32) {}`;

/** All heads' rows in one tensor, queries before keys before values; queries and keys are turned by their angles. */
const TURNED = `
fn turned_at(at: u32, token: u32, i: u32) -> f32 {
  let half = P.headDim / 2u;
  let angle = token * half + i % half;
  let cosine = load_angles(angle);
  let sine = load_angles(P.tokens * half + angle);
  if (i < half) { return load_all(at + i) * cosine - load_all(at + i + half) * sine; }
  return load_all(at + i) * cosine + load_all(at + i - half) * sine;
}
fn key_at(at: u32, token: u32, i: u32) -> f32 { return turned_at(at + P.heads * P.group * P.kH, token, i); }
fn value_at(at: u32, i: u32) -> f32 { return load_all(at + P.heads * (P.group + 1u) * P.vH + i); }
fn put_queries(head: u32, b: u32, lane: u32) {
  for (var n = lane; n < P.tokens * P.group * P.headDim; n += 256u) {
    let i = n % P.headDim;
    let queryHead = head * P.group + (n / P.headDim) % P.group;
    let token = n / (P.headDim * P.group);
    let row = (b * P.tokens + token) * P.heads * P.group + queryHead;
    store_queries(row * P.headDim + i, turned_at(b * P.kB + token * P.kT + queryHead * P.kH, token, i));
  }
}`;

const appendKernel = (dtype: DType, gated: boolean, together: boolean): KernelSource => ({
  name: "step-append",
  constants: { GATED: gated },
  tensors: {
    ...(together ? { all: read(dtype), angles: read("f32"), queries: WRITTEN } : { k: read(dtype), v: read(dtype) }),
    ...{ logG: read("f32"), tailK: WRITTEN, tailV: WRITTEN, tailG: WRITTEN, gates: WRITTEN },
  },
  parameters: {
    tokens: "u32",
    heads: "u32",
    group: "u32",
    headDim: "u32",
    valueDim: "u32",
    tail: "u32",
    foldLength: "u32",
    kB: "u32",
    kT: "u32",
    kH: "u32",
    vB: "u32",
    vT: "u32",
    vH: "u32",
  },
  body: () => `${GATE_ADDITION}${together ? TURNED : AS_GIVEN}
var<workgroup> sums: array<vec2f, 256>;

// One workgroup for each head of each sequence: new tokens go behind the tail, and its log gates are summed up.
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  let head = id.x;
  let b = id.y;
  put_queries(head, b, lane);
  for (var n = lane; n < P.tokens * P.headDim; n += 256u) {
    let token = n / P.headDim;
    let i = n % P.headDim;
    let to = (b * P.foldLength + P.tail + token) * P.heads + head;
    store_tailK(to * P.headDim + i, key_at(b * P.kB + token * P.kT + head * P.kH, token, i));
  }
  for (var n = lane; n < P.tokens * P.valueDim; n += 256u) {
    let token = n / P.valueDim;
    let i = n % P.valueDim;
    let to = (b * P.foldLength + P.tail + token) * P.heads + head;
    store_tailV(to * P.valueDim + i, value_at(b * P.vB + token * P.vT + head * P.vH, i));
  }
  let end = P.tail + P.tokens;
  var before = vec2f(0);
  for (var base = 0u; base < end; base += 256u) {
    let t = base + lane;
    let at = (b * P.foldLength + t) * P.heads + head;
    var own = 0.0;
    if (t < P.tail) { own = load_tailG(at); }
    else if (t < end) {
      if (GATED) { own = load_logG((b * P.tokens + t - P.tail) * P.heads + head); }
      store_tailG(at, own);
    }
    var sum = gate_pair(own);
    for (var reach = 1u; reach < 256u; reach *= 2u) {
      sums[lane] = sum;
      workgroupBarrier();
      if (lane >= reach) { sum = add(sums[lane - reach], sum); }
      workgroupBarrier();
    }
    sum = add(before, sum);
    if (t < end) { store2_gates(2u * ((b * P.heads + head) * P.foldLength + t), sum.x, sum.y); }
    sums[lane] = sum;
    workgroupBarrier();
    before = sums[255];
    workgroupBarrier();
  }
}`,
});

/**
 * Puts the new tokens behind the tail. Gives the sums of log gates from its first token, as GATES reads them, and the queries,
 * turned where angles are given: in f32 where the same kernel turns them, which it does where they come as one tensor.
 */
export function append(plan: StepPlan, carry: Carry, inputs: StepInputs): { gates: Tensor; q: Tensor } {
  const { batch, tokens, queryHeads, heads, headDim, valueDim, tail, foldLength } = plan;
  const all = inputs.angles && beside(inputs.q, inputs.k, inputs.v);
  const { q, k, v, logG } = all ? inputs : turned(inputs);
  const device = webgpuDevice(k);
  const gates = empty([batch, heads, foldLength, 2], device, "f32");
  const queries = all ? empty(q.shape, device, "f32") : q;
  const [kB, kT, kH] = k.strides;
  const [vB, vT, vH] = v.strides;
  const tails = { logG: logG ?? absent(k), tailK: carry.k, tailV: carry.v, tailG: carry.logG, gates };
  const [gated, together] = [logG !== undefined, all !== undefined];
  const source = keptSource(`step append ${k.dtype} ${gated} ${together}`, () =>
    appendKernel(k.dtype, gated, together),
  );
  device.dispatch(source, {
    tensors: all ? { all, angles: inputs.angles!, queries, ...tails } : { k, v, ...tails },
    parameters: {
      ...{ tokens, heads, group: queryHeads / heads, headDim, valueDim, tail, foldLength },
      ...{ kB, kT, kH, vB, vT, vH },
    },
    workgroups: [heads, batch],
    moving: ["tail"],
  });
  return { gates, q: queries };
}
