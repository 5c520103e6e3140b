import { webgpuDevice } from "../../../devices/webgpu/device.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { rowsAreWide, WIDE } from "../../../devices/webgpu/wide.js";
import type { DType } from "../../../tensor/dtype.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SequencePlan } from "../contract.js";
import { absent } from "../webgpu-gates.js";
import type { Levels } from "./levels.js";
import { chunkRows, type Packed } from "./pack.js";
import { GRADIENT_EXPONENT, WEIGHT_EXPONENT } from "./pairs.js";
import { type ChunkStates, FACTORS, NONE_REACHED } from "./scan.js";
import { EXPONENTS, putOctet } from "./text.js";
import { FEATURE_EXPONENT } from "./tiles.js";

const QUERIES = 0;
const KEYS = 1;
const VALUES = 2;
const KIND = { q: QUERIES, k: KEYS, v: VALUES };

/**
 * Joins a gradient's parts from within chunks and from states and puts the powers of two back, as sums of exponents (e of a
 * packed row, G·log₂e, levels L, λ the level that pairs were counted at, M the largest level of later queries):
 *
 *     dq   near  p · scale^p · 2^(e(p−1) + e_dy + e_v + λ)        far  scale^p · 2^(e(p−1) + e_dy + G)
 *     dk   near  p · scale^p · 2^(e(p−1) + e_v − G + M)           far  2^(e(p−1) + e_v + G_end − G)
 *     dv   near  scale^p · 2^(L + M)                              far  2^(L + G_end)
 */
const kernel = (dtype: DType, constants: Record<string, number | boolean>): KernelSource => ({
  name: "join-gradient",
  constants,
  tensors: {
    near: { dtype: "f32", access: "read", wide: true },
    far: { dtype: "f32", access: "read", wide: true },
    keyTokens: { dtype: "f32", access: "read" },
    ...(constants.KIND === QUERIES
      ? { gradients: { dtype: "f32", access: "read" } }
      : { later: { dtype: "f32", access: "read" } }),
    exponents: { dtype: "f32", access: "read" },
    ...(constants.KIND === VALUES ? {} : { flow: { dtype: "f32", access: "read" } }),
    valueLargest: { dtype: "f32", access: "read" },
    factors: { dtype: "f32", access: "read" },
    x: { dtype: "f16", access: "read", wide: true },
    dx: { dtype, access: "write", wide: constants.WIDE === true },
    products: { dtype: "f32", access: "write" },
  },
  parameters: {
    time: "u32",
    heads: "u32",
    members: "u32",
    chunkSize: "u32",
    chunks: "u32",
    width: "u32",
    nearWidth: "u32",
    farWidth: "u32",
    xWidth: "u32",
    firstChunk: "u32",
    endChunk: "u32",
    rows: "u32",
    scaleLog: "f32",
  },
  body: () => `${EXPONENTS}${putOctet("dx", constants.WIDE === true, constants.EVEN === true)}
var<workgroup> partial: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let place = (id.x + id.y * groups.x) * 32u + lane / 8u;
  let alive = place < P.rows;
  let row = min(place, P.rows - 1u); // counts b, t, head of x
  let xHead = row % (P.heads * P.members);
  let t = (row / (P.heads * P.members)) % P.time;
  let b = row / (P.heads * P.members * P.time);
  let head = xHead / P.members;
  let chunk = t / P.chunkSize;
  let line = (b * P.heads + head) * P.chunks + chunk;
  let at = ((b * P.heads * P.members + xHead) * P.chunks + chunk) * CHUNK_ROWS + t % P.chunkSize;
  let keyRow = line * CHUNK_ROWS + t % P.chunkSize;
  let last = line * CHUNK_ROWS + min(P.chunkSize, P.time - chunk * P.chunkSize) - 1u;
  let gate = load_keyTokens(4u * keyRow + 2u);
  let gateEnd = load_keyTokens(4u * last + 2u);
  let valueE = f32(exponent_of(load_valueLargest((b * P.chunks + chunk) * P.heads + head)));
  let own = DEGREE_LESS_1 * load_exponents(at);
  var later = 0.0;
  ${constants.KIND === QUERIES ? "" : "if (NEAR) { later = load_later(at); }"}
  var near = P.scaleLog;
  var far = 0.0;
  ${constants.KIND === QUERIES ? "let gradient = load_gradients(at);" : "let gradient = 0.0;"}
  if (KIND == QUERIES) {
    near += own + gradient + valueE + load_keyTokens(4u * keyRow + 1u) + gate - GRADIENT_EXPONENT;
    far = P.scaleLog + own + gradient + gate;
  } else if (KIND == KEYS) {
    near += own + valueE - gate + later - GRADIENT_EXPONENT;
    far = own + valueE + gateEnd - gate;
  } else {
    near += load_keyTokens(4u * keyRow) + later - WEIGHT_EXPONENT;
    far = load_keyTokens(4u * keyRow) + gateEnd - FEATURE_EXPONENT;
  }
  let nearFactor = exp2(near) * select(f32(DEGREE_LESS_1 + 1), 1.0, KIND == VALUES);
  let reads = STATES && chunk >= P.firstChunk && chunk < P.endChunk;
  // In halves: the exponent may be beyond f32 where the product is not.
  var farHalf = 0.0;
  if (reads) { farHalf = exp2(0.5 * clamp(far + log_of(load_factors(${FACTORS}u * line + 5u)), -250.0, 250.0)); }
  var product = 0.0;
  for (var i = 8u * (lane % 8u); i < P.width; i += 64u) {
    var a = vec4f(0);
    var b = vec4f(0);
    if (reads) {
      let from_far = load8_far(at * P.farWidth + i);
      a = farHalf * (farHalf * from_far.a);
      b = farHalf * (farHalf * from_far.b);
    }
    if (PRODUCTS) {
      let own_x = load8_x(at * P.xWidth + i);
      product += dot(a, own_x.a) + dot(b, own_x.b);
    }
    if (NEAR) {
      let from_near = load8_near(at * P.nearWidth + i);
      a += nearFactor * from_near.a;
      b += nearFactor * from_near.b;
    }
    if (alive) { put_dx(row * P.width + i, P.width - i, a, b); }
  }
  if (PRODUCTS) {
    partial[lane] = product;
    workgroupBarrier();
    if (alive && lane % 8u == 0u) {
      var total = 0.0;
      for (var k = 0u; k < 8u; k++) { total += partial[lane + k]; }
      ${constants.KIND === VALUES ? "" : "if (NEAR) { total += nearFactor * load_flow(at); }"}
      store_products(row, exp2(load_exponents(at)) * total / (DEGREE_LESS_1 + 1.0));
    }
  }
}`,
});

export interface JoinInputs {
  /** From pairs, and from states: either or both. */
  near?: Tensor;
  far?: Tensor;
  states: ChunkStates | undefined;
  keys: Levels;
  /** For pairs, at keys and values; and what pairs give of products. */
  later?: Tensor;
  flow?: Tensor;
  /** Packed queries or keys, whichever dx belongs to (keys for values); and, for queries, the packed gradients at them. */
  x: Packed;
  dy?: Packed;
  valueLargest: Tensor;
}

/**
 * Fills dx [B, T, heads, width], contiguous, and where given `products` [B, T, heads] f32 with x·dx / degree, which is what
 * gates want.
 */
export function joinGradient(
  plan: SequencePlan,
  what: keyof typeof KIND,
  inputs: JoinInputs,
  dx: Tensor,
  products?: Tensor,
): void {
  const { near, far, states, keys, later, flow, x, dy, valueLargest } = inputs;
  const { time, heads, chunkSize, chunks, degree, scale } = plan;
  const device = webgpuDevice(dx);
  const none = absent(dx);
  const noRows = empty([WIDE], device, "f32");
  const [, , xHeads, width] = dx.shape;
  const rows = dx.size / width;
  device.dispatch(
    kernel(dx.dtype, {
      PRODUCTS: products !== undefined,
      EVEN: width % 2 === 0,
      WIDE: rowsAreWide(width, dx),
      ...{ QUERIES, KEYS, VALUES, KIND: KIND[what] },
      DEGREE_LESS_1: degree - 1,
      NEAR: near !== undefined,
      STATES: far !== undefined,
      CHUNK_ROWS: chunkRows(plan),
      ...{ GRADIENT_EXPONENT, WEIGHT_EXPONENT, FEATURE_EXPONENT },
    }),
    {
      tensors: {
        near: near ?? noRows,
        far: far ?? noRows,
        keyTokens: keys.tokens,
        ...(what === "q" ? { gradients: dy?.exponents ?? none } : { later: later ?? none }),
        ...(what === "v" ? {} : { flow: flow ?? none }),
        exponents: x.exponents,
        valueLargest,
        factors: states?.factors ?? none,
        x: x.values,
        dx,
        products: products ?? empty([1], device, "f32"),
      },
      parameters: {
        ...{ time, heads, members: xHeads / heads, chunkSize, chunks, width, rows },
        ...(states?.reached ?? NONE_REACHED),
        nearWidth: near?.shape[1] ?? 0,
        farWidth: far?.shape[1] ?? 0,
        xWidth: x.values.shape[1],
        scaleLog: degree * Math.log2(Math.abs(scale)),
      },
      workgroups: device.spread(Math.ceil(rows / 32)),
    },
  );
}
