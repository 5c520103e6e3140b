import { webgpuDevice } from "../../../devices/webgpu/device.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import { largest } from "../../reduce/webgpu.js";
import type { SequencePlan, State } from "../contract.js";
import { absent } from "../webgpu-gates.js";
import { zerosLike } from "../webgpu-rows.js";
import type { FeatureOrder } from "./features.js";
import type { Levels } from "./levels.js";
import { chunkRows } from "./pack.js";
import { loadPublic, orderTable, storePublic } from "./public-order.js";
import { EXPONENTS, HALVES } from "./text.js";
import { FEATURE_EXPONENT } from "./tiles.js";

/** The chunks that something reaches: states of those before or after are 0, and what would be read from them is not asked for. */
export interface Reached {
  firstChunk: number;
  endChunk: number;
}

export const NONE_REACHED: Reached = { firstChunk: 0, endChunk: 0 };

/** Keys reach the chunks after theirs and queries' gradients those before; what is `given` at the end reaches all. */
export function reachedChunks({ chunks }: SequencePlan, side: "keys" | "queries", given: boolean): Reached {
  const alone = given ? 0 : 1;
  return side === "keys" ? { firstChunk: alone, endChunk: chunks } : { firstChunk: 0, endChunk: chunks - alone };
}

/** What LINE_PARAMETERS name, for as many lines of a chunk's rows that meet these states. */
export const lineParameters = ({ batch, heads, chunks }: SequencePlan, lines: number, { s, reached }: ChunkStates) => ({
  ...{ lines, chunks, members: lines / (batch * heads * chunks) },
  features: s.shape[3],
  ...reached,
});

export const isReached = ({ firstChunk, endChunk }: Reached) => firstChunk < endChunk;

/** States as `read` takes them. */
export interface ChunkStates {
  /** f16 [B, H, N, features, columns], weighted by multiplicity. */
  s: Tensor;
  /** f32 [B, H, N, features]: the column of `s` for sums, side by side. */
  z: Tensor;
  /**
   * f32 [B, H, N, 8], by chunk: decay; what its sums count, for values and for the column of sums; 1 / 2^e and 2^e of `s`,
   * likewise. States that were given, not scanned, have the last two alone.
   */
  factors: Tensor;
  reached: Reached;
  /** Where asked for: what leaves the last chunk (or the first, going back), in the public order. */
  last: State | undefined;
}

export const FACTORS = 8;

/**
 * `sum_scale(line, chunk)`: units of what comes through a state's column for sums, which has a power of two of its own, in those of
 * what comes through the others; 2^e of values is in it, by which queries' y had its sums divided beside, and keys' values were.
 * Needs EXPONENTS, bindings factors and valueLargest, and P.queries.
 */
export const SUM_SCALE = `
fn sum_scale(line: u32, chunk: u32) -> f32 {
  let state = (line / P.chunks / P.members) * P.chunks + chunk;
  let head = line / P.chunks / P.members;
  let b = head / P.heads;
  let power = power_of(load_valueLargest((b * P.chunks + chunk) * P.heads + head % P.heads));
  return load_factors(${FACTORS}u * state + 6u) / load_factors(${FACTORS}u * state + 5u) * select(1.0 / power, power, P.queries == 1u);
}
`;

/**
 * One workgroup for each sequence and key head. The range of a state is known from bounds alone: packed features and
 * values are below 1, so a chunk adds at most its tokens times its factor to any element.
 */
const factorsKernel = (constants: Record<string, number | boolean>): KernelSource => ({
  name: "state-factors",
  constants,
  tensors: {
    tokens: { dtype: "f32", access: "read" },
    levelLargest: { dtype: "f32", access: "read" },
    valueLargest: { dtype: "f32", access: "read" },
    firstS: { dtype: "f32", access: "read" },
    firstZ: { dtype: "f32", access: "read" },
    factors: { dtype: "f32", access: "write" },
  },
  parameters: {
    time: "u32",
    heads: "u32",
    chunkSize: "u32",
    chunks: "u32",
    scaleLog: "f32",
    most: "f32",
    weight: "f32",
  },
  body: () => `
var<workgroup> decays: array<f32, 256>;
var<workgroup> addends: array<vec2f, 256>;
var<workgroup> bounds: array<vec2f, 256>;

${EXPONENTS}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  let line = id.x; // counts b, key head
  let head = line % P.heads;
  let b = line / P.heads;
  var bound = vec2f(0);
  if (HAS_FIRST) { bound = vec2f(load_firstS(line), load_firstZ(line)); }
  for (var base = 0u; base < P.chunks; base += 256u) {
    let at = base + lane;
    let chunk = select(at, P.chunks - 1u - at, REVERSE);
    if (at < P.chunks) {
      let count = min(P.chunkSize, P.time - chunk * P.chunkSize);
      let gate = load_tokens(4u * ((line * P.chunks + chunk) * CHUNK_ROWS + count - 1u) + 2u);
      decays[lane] = exp2(gate);
      let state = (b * P.chunks + chunk) * P.heads + head;
      let factor = exp2(load_levelLargest(line * P.chunks + chunk) + select(gate, 0.0, QUERIES) + P.scaleLog);
      // Gradients' powers of two are in their levels; those of sums have the values' beside.
      let power = power_of(load_valueLargest(state));
      addends[lane] = factor * select(vec2f(power, 1.0), vec2f(1.0, power), QUERIES);
    }
    workgroupBarrier();
    // Every lane walks alike; each keeps what enters its own chunk.
    for (var k = 0u; k < min(256u, P.chunks - base); k++) {
      if (lane == 0u) { bounds[k] = bound; }
      bound = decays[k] * bound + vec2f(P.most, select(1.0, 64.0, QUERIES) * P.most) * addends[k];
    }
    workgroupBarrier();
    if (at < P.chunks) {
      let powers = vec2f(power_of(P.weight * bounds[lane].x), power_of(P.weight * bounds[lane].y)) * exp2(-15.0);
      let to = ${FACTORS}u * (line * P.chunks + chunk);
      store_factors(to, decays[lane]);
      store_factors(to + 1u, addends[lane].x);
      store_factors(to + 2u, addends[lane].y);
      store_factors(to + 3u, 1.0 / powers.x);
      store_factors(to + 4u, 1.0 / powers.y);
      store_factors(to + 5u, powers.x);
      store_factors(to + 6u, powers.y);
    }
    workgroupBarrier();
  }
}`,
});

const scanKernel = (constants: Record<string, number | boolean>): KernelSource => ({
  name: "state-scan-halves",
  constants,
  tensors: {
    sums: { dtype: "f32", access: "read", vectors: true },
    factors: { dtype: "f32", access: "read" },
    order: { dtype: "i32", access: "read" },
    firstS: { dtype: "f32", access: "read" },
    firstZ: { dtype: "f32", access: "read" },
    s: { dtype: "f16", access: "write", vectors: true },
    z: { dtype: "f32", access: "write" },
    lastS: { dtype: "f32", access: "write" },
    lastZ: { dtype: "f32", access: "write" },
  },
  parameters: { lines: "u32", chunks: "u32", features: "u32", expanded: "u32", valueDim: "u32" },
  body: () => `enable f16;
${HALVES}${loadPublic("firstS", "firstZ")}${storePublic("lastS", "lastZ")}
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let line = id.y + id.z * groups.y; // counts b, key head
  if (line >= P.lines || id.x >= P.features * OCTETS) { return; }
  let feature = id.x / OCTETS;
  let octet = id.x % OCTETS;
  let isSum = octet == SUM_AT;
  let place = load_order(2u * feature);
  let weight = bitcast<f32>(load_order(2u * feature + 1u));
  let first = select(0u, (line * P.expanded + u32(place)), place >= 0);
  var low = vec4f(0);
  var high = vec4f(0);
  if (HAS_FIRST && place >= 0) {
    let given = load_public(first, octet, weight);
    low = given.low;
    high = given.high;
  }
  for (var n = 0u; n < P.chunks; n++) {
    let chunk = select(n, P.chunks - 1u - n, REVERSE);
    let state = line * P.chunks + chunk;
    let at = (state * P.features + feature) * OCTETS + octet;
    let factor = load_factors(${FACTORS}u * state + select(1u, 2u, isSum));
    let down = weight * load_factors(${FACTORS}u * state + select(3u, 4u, isSum));
    let a = down * low;
    let b = down * high;
    store4_s(at, vec4u(two_halves(a.x, a.y), two_halves(a.z, a.w), two_halves(b.x, b.y), two_halves(b.z, b.w)));
    if (isSum) { store_z(state * P.features + feature, a.x); }
    if (!WANT_LAST && n + 1u == P.chunks) { break; } // sums that unreadSums names are not there
    let decay = load_factors(${FACTORS}u * state);
    low = decay * low + factor * bitcast<vec4f>(load4_sums(2u * at));
    high = decay * high + factor * bitcast<vec4f>(load4_sums(2u * at + 1u));
  }
  if (WANT_LAST && place >= 0) { store_public(first, octet, weight, low, high); }
}`,
});

export interface ScanInputs {
  /** f32 [B, H, N, features, columns], as `accumulate` gives them. */
  sums: Tensor;
  /** Levels of the keys, for the gates; and of the tokens that were summed. */
  keys: Levels;
  summed: Levels;
  side: "keys" | "queries";
  /** [B, N, H] f32: the largest of the values. */
  valueLargest: Tensor;
  /** The octet of columns that begins with the sums. */
  sumAt: number;
  first: Partial<State> | undefined;
  wantLast: boolean;
}

/** The chunk whose sums nobody reads: the last of the walk over them, where what leaves it is not asked for. */
export function unreadSums({ chunks }: SequencePlan, side: "keys" | "queries", wantLast: boolean): number | undefined {
  if (wantLast) return undefined;
  return side === "keys" ? chunks - 1 : 0;
}

/** Carries sums over chunks: what enters each (keys, forwards), or arrives from those after it (queries, backwards). */
export function scanStates(plan: SequencePlan, order: FeatureOrder, inputs: ScanInputs): ChunkStates {
  const { batch, heads, queryHeads, chunks, chunkSize, time, expandedDim, valueDim, degree, scale } = plan;
  const { sums, keys, summed, side, valueLargest, sumAt, first, wantLast } = inputs;
  const device = webgpuDevice(sums);
  const none = absent(sums);
  const queries = side === "queries";
  const columns = sums.shape[4];
  const lines = batch * heads;
  const factors = empty([batch, heads, chunks, FACTORS], device, "f32");
  const bounds = first && { s: first.s && largest(first.s, [2, 3]), z: first.z && largest(first.z, [2]) };
  const zeros = (...shape: number[]) => zerosLike(shape, sums, "f32");
  const shared = { REVERSE: queries, HAS_FIRST: first !== undefined };
  device.dispatch(factorsKernel({ ...shared, QUERIES: queries, CHUNK_ROWS: chunkRows(plan) }), {
    tensors: {
      tokens: keys.tokens,
      levelLargest: summed.largest,
      valueLargest,
      firstS: bounds ? (bounds.s ?? zeros(lines)) : none,
      firstZ: bounds ? (bounds.z ?? zeros(lines)) : none,
      factors,
    },
    parameters: {
      ...{ time, heads, chunkSize, chunks },
      scaleLog: (queries ? degree * Math.log2(Math.abs(scale)) : 0) - FEATURE_EXPONENT,
      most: 2 ** FEATURE_EXPONENT * chunkSize * (queries ? queryHeads / heads : 1),
      weight: order.table.multiplicities.reduce((a, b) => Math.max(a, b)),
    },
    workgroups: [lines],
  });
  const s = empty([batch, heads, chunks, order.features, columns], device, "f16");
  const z = empty([batch, heads, chunks, order.features], device, "f32");
  const last = wantLast
    ? {
        s: empty([batch, heads, expandedDim, valueDim], device, "f32"),
        z: empty([batch, heads, expandedDim], device, "f32"),
      }
    : undefined;
  const scrap = () => empty([1], device, "f32");
  device.dispatch(
    scanKernel({
      ...shared,
      WANT_LAST: wantLast,
      OCTETS: columns / 8,
      SUM_AT: sumAt,
    }),
    {
      tensors: {
        sums,
        factors,
        order: orderTable(sums, order),
        firstS: first ? (first.s ?? zeros(batch, heads, expandedDim, valueDim)) : none,
        firstZ: first ? (first.z ?? zeros(batch, heads, expandedDim)) : none,
        s,
        z,
        lastS: last?.s ?? scrap(),
        lastZ: last?.z ?? scrap(),
      },
      parameters: { lines, chunks, features: order.features, expanded: expandedDim, valueDim },
      workgroups: [Math.ceil((order.features * columns) / 8 / 256), ...device.spread(lines)],
    },
  );
  return { s, z, factors, reached: reachedChunks(plan, side, first !== undefined), last };
}
