import { webgpuDevice } from "../../../devices/webgpu/device.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { rowsAreWide, WIDE } from "../../../devices/webgpu/wide.js";
import type { DType } from "../../../tensor/dtype.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SequencePlan } from "../contract.js";
import { absent } from "../webgpu-gates.js";
import type { Levels } from "./levels.js";
import { chunkRows, type Packed } from "./pack.js";
import { WEIGHT_EXPONENT } from "./pairs.js";
import { type ChunkStates, FACTORS, NONE_REACHED } from "./scan.js";
import { EXPONENTS, putOctet } from "./text.js";
import { FEATURE_EXPONENT } from "./tiles.js";

/**
 * Joins what came from pairs and from states, puts the powers of two back, and divides by the sum of weights.
 *
 *     y_i = (scale · 2^e_i)^p · (2^λ_i · pairs_i + exp(G_i) · states_i)       λ_i: the level that pairs were counted at
 *
 * Eight lanes a row.
 */
const kernel = (dtype: DType, constants: Record<string, number | boolean>): KernelSource => ({
  name: "finish-output",
  constants,
  tensors: {
    near: { dtype: "f32", access: "read", wide: true },
    far: { dtype: "f32", access: "read", wide: true },
    tokens: { dtype: "f32", access: "read" },
    exponents: { dtype: "f32", access: "read" },
    valueLargest: { dtype: "f32", access: "read" },
    factors: { dtype: "f32", access: "read" },
    y: { dtype: "f32", access: "write", wide: constants.WIDE === true },
    rowSum: { dtype: "f32", access: "write" },
    output: { dtype, access: "write", wide: constants.WIDE === true },
  },
  parameters: {
    time: "u32",
    heads: "u32",
    group: "u32",
    chunkSize: "u32",
    chunks: "u32",
    valueDim: "u32",
    firstChunk: "u32",
    endChunk: "u32",
    rows: "u32",
    scaleLog: "f32",
  },
  body: () => `${EXPONENTS}${["y", "output"].map((name) => putOctet(name, constants.WIDE === true, constants.EVEN === true)).join("")}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let row = (id.x + id.y * groups.x) * 32u + lane / 8u; // counts b, t, query head
  if (row >= P.rows) { return; }
  let queryHead = row % (P.heads * P.group);
  let t = (row / (P.heads * P.group)) % P.time;
  let b = row / (P.heads * P.group * P.time);
  let head = queryHead / P.group;
  let chunk = t / P.chunkSize;
  let line = (b * P.heads + head) * P.chunks + chunk;
  let token = 4u * (line * CHUNK_ROWS + t % P.chunkSize);
  let at = ((b * P.heads * P.group + queryHead) * P.chunks + chunk) * CHUNK_ROWS + t % P.chunkSize;
  let reads = STATES && chunk >= P.firstChunk && chunk < P.endChunk;
  var ofState = vec2f(0);
  if (reads) {
    ofState = load_tokens(token + 2u) - FEATURE_EXPONENT +
      vec2f(log_of(load_factors(${FACTORS}u * line + 5u)), log_of(load_factors(${FACTORS}u * line + 6u)));
  }
  // Relative to the pairs' level, or to the states' own where there are no pairs: what all have in common comes last.
  var level = ofState;
  var near = vec2f(0);
  var sum = 0.0;
  if (NEAR) {
    level = vec2f(load_tokens(token + 1u) + load_tokens(token + 2u));
    near = exp2(-WEIGHT_EXPONENT) * vec2f(power_of(load_valueLargest((b * P.chunks + chunk) * P.heads + head)), 1.0);
    sum = near.y * load8_near(at * COLUMNS + SUM_COLUMN).a.x;
  }
  let far = exp2(min(ofState - level, vec2f(126.0)));
  if (reads) { sum += far.y * load8_far(at * COLUMNS + SUM_COLUMN).a.x; }
  let shared_factors = exp2(level + DEGREE * load_exponents(at) + P.scaleLog);
  var factor = shared_factors.x;
  if (DIVIDE) { factor = select(1.0 / sum, 0.0, sum == 0.0); }
  if (lane % 8u == 0u) { store_rowSum(row, shared_factors.y * sum); }
  for (var i = 8u * (lane % 8u); i < P.valueDim; i += 64u) {
    var low = vec4f(0);
    var high = vec4f(0);
    if (NEAR) {
      let from_near = load8_near(at * COLUMNS + i);
      low = near.x * from_near.a;
      high = near.x * from_near.b;
    }
    if (reads) {
      let from_far = load8_far(at * COLUMNS + i);
      low += far.x * from_far.a;
      high += far.x * from_far.b;
    }
    low *= factor;
    high *= factor;
    let to = row * P.valueDim + i;
    put_y(to, P.valueDim - i, low, high);
    if (ROUNDED) { put_output(to, P.valueDim - i, low, high); }
  }
}`,
});

/** y [B, T, Hq, e] f32, its sums of weights [B, T, Hq] f32, and where wanted y in the dtype of the inputs: all contiguous. */
export interface Output {
  y: Tensor;
  rowSum: Tensor;
  output?: Tensor;
}

/** Fills `result` from pairs, from states or from both; where pairs take part, y is divided by the sums if `divide` says so. */
export function finish(
  plan: SequencePlan,
  divide: boolean,
  near: Tensor | undefined,
  far: { read: Tensor; states: ChunkStates } | undefined,
  queries: Packed,
  keys: Levels,
  valueLargest: Tensor,
  sumAt: number,
  result: Output,
): void {
  const { batch, time, queryHeads, heads, valueDim, chunkSize, chunks, degree, scale } = plan;
  const { y, rowSum, output } = result;
  const device = webgpuDevice(y);
  const none = absent(y);
  const noRows = empty([WIDE], device, "f32");
  const rows = batch * time * queryHeads;
  const [, columns] = (near ?? far?.read)!.shape;
  device.dispatch(
    kernel(output?.dtype ?? "f32", {
      DEGREE: degree,
      CHUNK_ROWS: chunkRows(plan),
      COLUMNS: columns,
      SUM_COLUMN: 8 * sumAt,
      WEIGHT_EXPONENT,
      FEATURE_EXPONENT,
      NEAR: near !== undefined,
      STATES: far !== undefined,
      ROUNDED: output !== undefined,
      DIVIDE: divide,
      EVEN: valueDim % 2 === 0,
      WIDE: rowsAreWide(valueDim, y, output),
    }),
    {
      tensors: {
        near: near ?? noRows,
        far: far?.read ?? noRows,
        tokens: keys.tokens,
        exponents: queries.exponents,
        valueLargest,
        factors: far?.states.factors ?? none,
        ...{ y, rowSum, output: output ?? empty([WIDE], device, "f32") },
      },
      parameters: {
        ...{ time, heads, group: queryHeads / heads, chunkSize, chunks, valueDim, rows },
        ...(far?.states.reached ?? NONE_REACHED),
        scaleLog: degree * Math.log2(Math.abs(scale)),
      },
      workgroups: device.spread(Math.ceil(rows / 32)),
    },
  );
}
