import { webgpuDevice } from "../../../devices/webgpu/device.js";
import { each } from "../../../devices/webgpu/each.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { columnMatrices, matrices, rowStride, tileAhead } from "../../../devices/webgpu/matrix-text.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SequencePlan } from "../contract.js";
import { contraction } from "./contraction.js";
import { OCTET } from "./features.js";
import { groupWords } from "./higher-features.js";
import { chunkRows, type Packed } from "./pack.js";
import { keepRows, scoreAll } from "./pairs-text.js";
import { type ChunkStates, lineParameters, SUM_SCALE } from "./scan.js";
import { EXPONENTS, HALVES, LINE_AND_STATE, LINE_PARAMETERS } from "./text.js";
import { type PowerTiles, powerConstants } from "./tiles.js";

/**
 * The gradient of x through its features: dφ_t = s y_t + z ysum_t, 64 features at a time by [tokens × e] times [e × features],
 * then contracted with ∂φ/∂x. An invocation has a token to itself: of an octet of features, x[8j …] times a prefix, the
 * elements 8j … get dφ times the prefix, and each factor of the prefix the rest of it times dφ·x[8j …].
 */
const body = (tiles: PowerTiles, degree: number, xOctets: number, yOctets: number, sumAt: number) => {
  const own = tiles.subgroupSize / tiles.M;
  const steps = (sumAt * OCTET) / tiles.K;
  const part = tileAhead(
    "part",
    { lines: 64, octets: yOctets, stride: rowStride(yOctets), lanes: tiles.gradient.down * tiles.subgroupSize },
    (n) => `load4_s(s0 + ${n})`,
  );
  const { functions, begin, group, octet, end } = contraction(degree, xOctets);
  return `${matrices(tiles)}
const TOKENS = DOWN * SUBGROUP;
const WIDTH = X_OCTETS * 8;
const SCORE_STRIDE = 17; // times four
const DX_STRIDE = WIDTH + 1;
var<workgroup> part: array<vec4u, 64 * S_STRIDE>;
var<workgroup> sums: array<vec4f, 16>;
var<workgroup> changes: array<vec4f, TOKENS * SCORE_STRIDE>;
var<workgroup> dx: array<f32, TOKENS * DX_STRIDE>;

${HALVES}${EXPONENTS}${SUM_SCALE}${functions}
fn pair_of(word: u32) -> vec2f { return vec2f(halves(word)); }

@compute @workgroup_size(TOKENS)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  ${LINE_AND_STATE}
  let first = id.x * TOKENS;
  let row0 = line * CHUNK_ROWS;
  let ownRow = (lane / SUBGROUP) * SUBGROUP;
  let row = row0 + min(first + lane, CHUNK_ROWS - 1u);
  for (var i = 0u; i < WIDTH; i++) { dx[lane * DX_STRIDE + i] = 0.0; }
  // A sum's column has a power of two of its own.
  let ysum = pair_of(load4_y(row * Y_OCTETS + SUM_AT).x).x * sum_scale(line, chunk);
  ${keepRows("y", "y", "Y_OCTETS", own, steps, tiles)}
  var s0 = state * P.features * Y_OCTETS;
  ${part.declare}
  ${part.fetch}
  var x_low = vec4f(0);
  var x_high = vec4f(0);
  var block = 0xffffffffu;
  var low = vec4f(0);
  var high = vec4f(0);
  ${begin}
  for (var group = 0u; group < P.features / 64u; group++) {
    workgroupBarrier();
    ${part.keep}
    workgroupBarrier();
    s0 += 64u * Y_OCTETS;
    if (64u * group + 64u < P.features) {
      ${part.fetch}
    }
    ${groupWords("group")}
    ${scoreAll("y", "part", "S_STRIDE", "changes", columnMatrices(64, tiles), own, steps, tiles)}
    for (var n = lane; n < 16u; n += TOKENS) {
      let at = 4u * n * S_STRIDE + SUM_AT;
      sums[n] = vec4f(${[0, 1, 2, 3].map((k) => `pair_of(part[at + ${k}u * S_STRIDE].x).x`).join(", ")});
    }
    workgroupBarrier();
    let at = lane * SCORE_STRIDE;
    ${group}
    ${each(
      8,
      (k) => `{
      let word = word_${k};
      let a = changes[at + ${2 * k}u] + ysum * sums[${2 * k}];
      let b = changes[at + ${2 * k + 1}u] + ysum * sums[${2 * k + 1}];
      ${octet}
    }`,
    )}
  }
  ${end}
  flush(lane, block, low, high);
  workgroupBarrier();
  // Rows one after the other, so that lanes write neighbours.
  for (var n = lane; n < TOKENS * WIDTH; n += TOKENS) {
    if (first + n / WIDTH < CHUNK_ROWS) {
      store_result((row0 + first + n / WIDTH) * WIDTH + n % WIDTH, dx[(n / WIDTH) * DX_STRIDE + n % WIDTH]);
    }
  }
}

fn flush(lane: u32, block: u32, low: vec4f, high: vec4f) {
  if (block == 0xffffffffu) { return; }
  let to = lane * DX_STRIDE + 8u * block;
  ${["x", "y", "z", "w"].map((j, k) => `dx[to + ${k}u] += low.${j}; dx[to + ${k + 4}u] += high.${j};`).join("\n  ")}
}`;
};

/**
 * f32 [rows of x, 8 · octets], without powers of two: the gradient of packed x that read `states` (queries, with y = dy) or
 * made them (keys, with y = v and `states` their gradients). Chunks that no state reaches are left alone.
 */
export function featureGradient(
  plan: SequencePlan,
  tiles: PowerTiles,
  side: "queries" | "keys",
  x: Packed,
  y: Packed,
  states: ChunkStates,
  octets: Tensor,
  sumAt: number,
  valueLargest: Tensor,
): Tensor {
  const { heads, degree } = plan;
  const { s, factors } = states;
  const device = webgpuDevice(x.values);
  const rows = x.values.shape[0];
  const lines = rows / chunkRows(plan);
  const { down } = tiles.gradient;
  const source: KernelSource = {
    name: "feature-gradient",
    constants: {
      ...powerConstants(tiles),
      DEGREE: degree,
      X_OCTETS: x.octets,
      Y_OCTETS: y.octets,
      S_STRIDE: rowStride(y.octets),
      SUM_AT: sumAt,
      CHUNK_ROWS: chunkRows(plan),
      DOWN: down,
    },
    tensors: {
      x: { dtype: "f16", access: "read", vectors: true },
      y: { dtype: "f16", access: "read", vectors: true },
      s: { dtype: "f16", access: "read", vectors: true },
      factors: { dtype: "f32", access: "read" },
      valueLargest: { dtype: "f32", access: "read" },
      octets: { dtype: "i32", access: "read", vectors: true },
      result: { dtype: "f32", access: "write" },
    },
    parameters: { ...LINE_PARAMETERS, heads: "u32", queries: "u32" },
    body: () => body(tiles, degree, x.octets, y.octets, sumAt),
  };
  const result = empty([rows, OCTET * x.octets], device, "f32");
  device.dispatch(source, {
    tensors: { x: x.values, y: y.values, s, factors, valueLargest, octets, result },
    parameters: {
      ...lineParameters(plan, lines, states),
      heads,
      queries: Number(side === "queries"),
    },
    workgroups: [Math.ceil(chunkRows(plan) / (down * tiles.subgroupSize)), ...device.spread(lines)],
  });
  return result;
}
