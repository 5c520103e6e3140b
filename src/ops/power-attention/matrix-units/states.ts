import { webgpuDevice } from "../../../devices/webgpu/device.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { ChunkStates as PublicStates } from "../../chunk-state/contract.js";
import { largest } from "../../reduce/webgpu.js";
import type { SequencePlan } from "../contract.js";
import type { FeatureOrder } from "./features.js";
import type { Levels } from "./levels.js";
import { chunkRows } from "./pack.js";
import { loadPublic, orderTable, storePublic } from "./public-order.js";
import { type ChunkStates, FACTORS } from "./scan.js";
import { EXPONENTS, HALVES } from "./text.js";
import { FEATURE_EXPONENT } from "./tiles.js";

/*
 * States chunk by chunk between the public order, [B, N, H, …] in f32, and that of matrix units, [B, H, N, …]: for the
 * operations that give and take them without a scan.
 */

const PARAMETERS = {
  states: "u32",
  chunks: "u32",
  heads: "u32",
  features: "u32",
  expanded: "u32",
  valueDim: "u32",
} as const;

const PLACE = `
  let state = id.y + id.z * groups.y; // counts b, key head, chunk
  if (state >= P.states || id.x >= P.features * OCTETS) { return; }
  let feature = id.x / OCTETS;
  let octet = id.x % OCTETS;
  let isSum = octet == SUM_AT;
  let place = load_order(2u * feature);
  let multiplicity = bitcast<f32>(load_order(2u * feature + 1u));
  let chunk = state % P.chunks;
  let head = (state / P.chunks) % P.heads;
  let given = (state / (P.chunks * P.heads) * P.chunks + chunk) * P.heads + head; // counts b, chunk, key head
  let row = given * P.expanded + u32(max(place, 0));
`;

function dispatchOver(
  plan: SequencePlan,
  order: FeatureOrder,
  columns: number,
  source: KernelSource,
  tensors: Record<string, Tensor>,
  parameters: Record<string, number>,
) {
  const { batch, heads, chunks, expandedDim, valueDim } = plan;
  const states = batch * heads * chunks;
  const { features } = order;
  const device = webgpuDevice(tensors.s);
  device.dispatch(source, {
    tensors: { ...tensors, order: orderTable(tensors.s, order) },
    parameters: { ...parameters, states, chunks, heads, features, expanded: expandedDim, valueDim },
    workgroups: [Math.ceil((features * columns) / 8 / 256), ...device.spread(states)],
  });
}

const packKernel = (constants: Record<string, number>): KernelSource => ({
  name: "pack-states",
  constants,
  tensors: {
    s: { dtype: "f32", access: "read" },
    z: { dtype: "f32", access: "read" },
    largestS: { dtype: "f32", access: "read" },
    largestZ: { dtype: "f32", access: "read" },
    order: { dtype: "i32", access: "read" },
    packed: { dtype: "f16", access: "write", vectors: true },
    sums: { dtype: "f32", access: "write" },
    factors: { dtype: "f32", access: "write" },
  },
  parameters: PARAMETERS,
  body: () => `enable f16;
${HALVES}${EXPONENTS}${loadPublic("s", "z")}
fn power_for(most: f32) -> f32 {
  // Neither it nor its inverse may leave f32.
  return bitcast<f32>(u32(clamp(exponent_of(most) - HEADROOM, -126, 126) + 127) << 23u);
}

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  ${PLACE}
  let powers = vec2f(power_for(load_largestS(given)), power_for(load_largestZ(given)));
  if (id.x == 0u) {
    store_factors(${FACTORS}u * state + 5u, powers.x);
    store_factors(${FACTORS}u * state + 6u, powers.y);
  }
  var a = vec4f(0);
  var b = vec4f(0);
  if (place >= 0) {
    let value = load_public(row, octet, multiplicity);
    let down = 1.0 / select(powers.x, powers.y, isSum);
    a = multiplicity * (value.low * down);
    b = multiplicity * (value.high * down);
  }
  store4_packed((state * P.features + feature) * OCTETS + octet,
    vec4u(two_halves(a.x, a.y), two_halves(a.z, a.w), two_halves(b.x, b.y), two_halves(b.z, b.w)));
  if (isSum) { store_sums(state * P.features + feature, a.x); }
}`,
});

/**
 * States, or their gradients, as `read` and the gradients through features take them: s and z of each chunk scaled by their
 * largest magnitudes. Gradients through features add up what comes of both in units of s: s (times what it meets) may be 2^80
 * times smaller than z, not more.
 */
export function packStates(
  plan: SequencePlan,
  order: FeatureOrder,
  { stride, sumAt }: { stride: number; sumAt: number },
  { s, z }: PublicStates,
): ChunkStates {
  const { batch, heads, chunks } = plan;
  const columns = 8 * stride;
  const packed = empty([batch, heads, chunks, order.features, columns], s.device, "f16");
  const sums = empty([batch, heads, chunks, order.features], s.device, "f32");
  const factors = empty([batch, heads, chunks, FACTORS], s.device, "f32");
  // Multiplied by the root of a multiplicity values are to stay below 2^14: a gradient doubles some, and the exponent of an f32's largest is one short.
  const root = Math.ceil(Math.log2(order.table.multiplicities.reduce((a, b) => Math.max(a, b))) / 2);
  const bounds = { largestS: largest(s, [3, 4]), largestZ: largest(z, [3]) };
  const source = packKernel({ OCTETS: stride, SUM_AT: sumAt, HEADROOM: 14 - root });
  dispatchOver(plan, order, columns, source, { s, z, ...bounds, packed, sums, factors }, {});
  return { s: packed, z: sums, factors, reached: { firstChunk: 0, endChunk: chunks }, last: undefined };
}

const restoreKernel = (constants: Record<string, number | boolean>): KernelSource => ({
  name: "restore-states",
  constants,
  tensors: {
    sums: { dtype: "f32", access: "read", vectors: true },
    keyTokens: { dtype: "f32", access: "read" },
    levelLargest: { dtype: "f32", access: "read" },
    valueLargest: { dtype: "f32", access: "read" },
    order: { dtype: "i32", access: "read" },
    s: { dtype: "f32", access: "write" },
    z: { dtype: "f32", access: "write" },
  },
  parameters: { ...PARAMETERS, time: "u32", chunkSize: "u32", scaleLog: "f32" },
  body: () => `${EXPONENTS}${storePublic("s", "z")}
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  ${PLACE}
  if (place < 0) { return; }
  var e = load_levelLargest(state) + P.scaleLog;
  if (!QUERIES) {
    let last = min(P.chunkSize, P.time - chunk * P.chunkSize) - 1u;
    e += load_keyTokens(4u * (state * CHUNK_ROWS + last) + 2u);
  }
  // Gradients' powers of two are in their levels; those of their sums have the values' beside.
  if (isSum == QUERIES) { e += f32(exponent_of(load_valueLargest(given))); }
  // In halves: the exponent may be beyond f32 where the product is not.
  let half = exp2(0.5 * clamp(e, -250.0, 250.0));
  let at = 2u * ((state * P.features + feature) * OCTETS + octet);
  let low = half * (half * bitcast<vec4f>(load4_sums(at)));
  let high = half * (half * bitcast<vec4f>(load4_sums(at + 1u)));
  store_public(row, octet, multiplicity, low, high);
}`,
});

export interface Sums {
  /** As `accumulate` gives them. */
  sums: Tensor;
  /** The octet of columns that begins with those of sums. */
  sumAt: number;
  /** Levels of the tokens that were summed: of keys, or of queries with gradients. */
  summed: Levels;
  side: "keys" | "queries";
  valueLargest: Tensor;
}

/** Fills s [B, N, H, D, e] and z [B, N, H, D] with what each chunk's tokens add up to, by itself. */
export function restoreStates(
  plan: SequencePlan,
  order: FeatureOrder,
  { sums, sumAt, summed, side, valueLargest }: Sums,
  into: PublicStates,
): void {
  const { time, chunkSize, degree, scale } = plan;
  const queries = side === "queries";
  const columns = sums.shape[4];
  const source = restoreKernel({
    ...{ OCTETS: columns / 8, SUM_AT: sumAt, CHUNK_ROWS: chunkRows(plan), QUERIES: queries },
  });
  const levels = { keyTokens: summed.tokens, levelLargest: summed.largest };
  dispatchOver(
    plan,
    order,
    columns,
    source,
    { sums, ...levels, valueLargest, ...into },
    {
      ...{ time, chunkSize },
      scaleLog: (queries ? degree * Math.log2(Math.abs(scale)) : 0) - FEATURE_EXPONENT,
    },
  );
}
