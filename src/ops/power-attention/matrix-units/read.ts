import { webgpuDevice } from "../../../devices/webgpu/device.js";
import { each } from "../../../devices/webgpu/each.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { READ_OCTETS } from "../../../devices/webgpu/legal-tiles.js";
import {
  columnMatrices,
  declareSums,
  foldedRows,
  matrices,
  multiplyAdd,
  rowStride,
  storeSums,
  tileAhead,
  turnsOf,
} from "../../../devices/webgpu/matrix-text.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SequencePlan } from "../contract.js";
import { OCTET, squareGroups } from "./features.js";
import { readHigher } from "./higher-features.js";
import { chunkRows, type Packed, valueOctets } from "./pack.js";
import { type ChunkStates, lineParameters } from "./scan.js";
import { LINE_AND_STATE, LINE_PARAMETERS } from "./text.js";
import { MAKE_FEATURES, type PowerTiles, powerConstants } from "./tiles.js";

const FEATURES_AT_ONCE = READ_OCTETS * OCTET;

/** φ(x_t)ᵀ s of a token's chunk: [tokens × features] by [features × columns], 32 features at a time, made as needed. */
const body = (
  tiles: PowerTiles,
  columns: number,
  ofState: number,
  degree: number,
  headDim: number,
  xOctets: number,
) => {
  const { tokens, down, across } = tiles.read;
  const own = tokens / (down * tiles.M);
  const matricesAcross = columnMatrices(columns / across, tiles);
  // A part of the state comes into registers while the one before is multiplied.
  const lanes = down * across * tiles.subgroupSize;
  const octets = columns / 8;
  const part = tileAhead(
    "part",
    { lines: FEATURES_AT_ONCE, octets, stride: rowStride(octets), lanes, apart: ofState / 8 },
    (n) => `load4_s(s0 + ${n})`,
  );
  const phi = foldedRows(READ_OCTETS, tiles.M);
  // Rows beyond the chunk repeat its last: nothing is stored for them.
  const inChunk = (n: string) => `min(token0 + ${n}, CHUNK_ROWS - 1u)`;
  const { count: ownTokens, at: n, within } = turnsOf(tokens, lanes);
  const general = {
    begin: "",
    fetch: "",
    make: (half: number) =>
      each(ownTokens, (k) =>
        within(
          k,
          `make_octets(row0 + ${inChunk(n(k))}, f16(exp2(FEATURE_EXPONENT)), 8u * group + ${half * READ_OCTETS}u, ${READ_OCTETS}u, phiAt_${k});`,
        ),
      ),
  };
  const features =
    degree === 2
      ? readSquares(headDim, ownTokens, within, (k) => inChunk(n(k)))
      : {
          ...(readHigher(degree, xOctets, tokens, lanes, READ_OCTETS) ?? general),
          groups: "P.features / 64u",
          // The last once more, rather than a branch: lanes would wait at its end for what was fetched.
          advance: "s0 += select(0u, PART, 64u * group + 64u < P.features);",
          ends: [],
        };
  const turn = (make: string, advance: string, fetch = "") => `{
    workgroupBarrier();
    ${part.keep}
    ${make}
    workgroupBarrier();
    ${advance}
    ${part.fetch}
    ${fetch}
    for (var step = 0u; step < ${FEATURES_AT_ONCE}u; step += MATRIX_K) {
      ${multiplyAdd(
        own,
        matricesAcross,
        (i) =>
          `subgroupMatrixLoad<Left, row_major>(&phi, ownRow / 2u * ${phi.stride}u + ${phi.placeOf(i * tiles.M)}u + step / 8u, ${phi.stride}u)`,
        ({ octet, width }) =>
          `subgroupMatrixLoad<Right${width}, row_major>(&part, step * S_STRIDE + ownColumn / 8u + ${octet}u, S_STRIDE)`,
      )}
    }
  }`;
  return `${matrices(tiles)}
const LANES = DOWN * ACROSS * SUBGROUP;
const PART = ${FEATURES_AT_ONCE}u * STATE_OCTETS;
const OWN_ROWS = TOKENS / DOWN;
const OWN_COLUMNS = COLUMNS / ACROSS;
var<workgroup> phi: array<vec4u, ${phi.size(tokens)}>;
var<workgroup> part: array<vec4u, ${FEATURES_AT_ONCE} * S_STRIDE>;
${"functions" in features ? features.functions : MAKE_FEATURES}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  ${LINE_AND_STATE}
  let token0 = id.x * TOKENS;
  let row0 = line * CHUNK_ROWS;
  let ownRow = ((lane / SUBGROUP) / ACROSS) * OWN_ROWS;
  let ownColumn = ((lane / SUBGROUP) % ACROSS) * OWN_COLUMNS;
  ${declareSums(own, matricesAcross)}
  let state0 = state * P.features * STATE_OCTETS;
  var s0 = state0;
  ${features.begin}
  ${part.declare}
  ${part.fetch}
  ${each(ownTokens, (k) => `let phiAt_${k} = ${phi.place(n(k))};`)}
  for (var group = 0u; group < ${features.groups}; group++) {
    ${turn(features.make(0), "s0 += PART;")}
    ${turn(features.make(1), features.advance, features.fetch)}
  }
  ${features.ends.map((make, at) => turn(make, at + 1 < features.ends.length ? "s0 += PART;" : "")).join("\n")}
  ${storeSums(
    own,
    matricesAcross,
    "result",
    "COLUMNS",
    (i) => `P.result_at + (row0 + token0 + ownRow + ${i * tiles.M}u) * COLUMNS + ownColumn`,
    { inside: (i) => `token0 + ownRow + ${i * tiles.M}u < CHUNK_ROWS` },
  )}
}`;
};

/**
 * At degree 2 a lane keeps its tokens' two blocks in registers, and fetches the next ones ahead. Triangles are read when both
 * their blocks are there.
 */
function readSquares(
  headDim: number,
  tokens: number,
  within: (k: number, text: string) => string,
  inChunk: (k: number) => string,
) {
  const { blocks, pairs, triangles, ends } = squareGroups(headDim);
  const groups = pairs + triangles;
  const weight = "f16(exp2(FEATURE_EXPONENT))";
  const perToken = (text: (k: number) => string) => each(tokens, (k) => within(k, text(k)));
  // That is where low would be high: with the block before it for low, unless they are those of a last block alone.
  const alone = blocks % 2 === 1 ? `highAt == ${blocks - 1}u` : "false";
  return {
    begin: `var lowAt = 0u;
  var highAt = ${Math.min(1, blocks - 1)}u;
  ${each(
    tokens,
    (k) => `let place_${k} = (row0 + ${inChunk(k)}) * X_OCTETS;
  var low_${k} = load4_x(place_${k});
  var high_${k} = load4_x(place_${k} + highAt);`,
  )}`,
    groups: `${groups}u`,
    make: (half: number) => `if (lowAt < highAt) {
      ${perToken((k) => `make_half_square(low_${k}.${half === 0 ? "xy" : "zw"}, high_${k}, ${weight}, phiAt_${k});`)}
    } else {
      ${perToken((k) => `make_half_triangles_${half}(low_${k}, high_${k}, ${weight}, phiAt_${k});`)}
    }`,
    advance: `lowAt++;
    let nextHigh = lowAt == highAt + select(highAt % 2u, 1u, ${alone});
    if (nextHigh) {
      lowAt = 0u;
      highAt = min(highAt + 1u, ${blocks - 1}u);
    }
    let next = select(${pairs}u + highAt / 2u, highAt * (highAt - 1u) / 2u + lowAt, lowAt < highAt);
    s0 = state0 + 2u * PART * select(next, ${ends > 0 ? groups : groups - 1}u, group == ${groups - 1}u);`,
    fetch: `if (nextHigh) { ${each(tokens, (k) => `high_${k} = load4_x(place_${k} + highAt);`)} }
    let lowBlock = min(lowAt, highAt - select(1u, 0u, ${alone}));
    ${each(tokens, (k) => `low_${k} = load4_x(place_${k} + lowBlock);`)}`,
    /** Half groups of squares alone; beyond the last one states are 0. */
    ends: Array.from({ length: Math.ceil(ends / READ_OCTETS) }, (_, turn) =>
      perToken((k) =>
        each(READ_OCTETS, (o) => {
          const block = Math.min(2 * (READ_OCTETS * turn + o) + 1, blocks - 1);
          return `make_ends(load4_x(place_${k} + ${block}u), ${weight}, phiAt_${k} + ${o}u);`;
        }),
      ),
    ),
  };
}

/**
 * What packed x reads from its chunks' states, f16 [B, H, N, features, columns] weighted by multiplicity: f32
 * [rows of x, columns], without the powers of two of either. `columns`: the first ones alone. Chunks that no state reaches are left
 * alone.
 */
export function read(
  plan: SequencePlan,
  tiles: PowerTiles,
  x: Packed,
  states: ChunkStates,
  octets: Tensor,
  columns: number = states.s.shape[4],
): Tensor {
  const { degree, headDim } = plan;
  const { s } = states;
  const device = webgpuDevice(x.values);
  const { tokens, down, across } = tiles.read;
  const rows = x.values.shape[0];
  const lines = rows / chunkRows(plan);
  const source: KernelSource = {
    name: "read-on-matrix-units",
    constants: {
      ...powerConstants(tiles),
      DEGREE: degree,
      HEAD_DIM: headDim,
      X_OCTETS: x.octets,
      S_STRIDE: rowStride(columns / 8),
      COLUMNS: columns,
      STATE_OCTETS: s.shape[4] / OCTET,
      CHUNK_ROWS: chunkRows(plan),
      TOKENS: tokens,
      DOWN: down,
      ACROSS: across,
    },
    tensors: {
      x: { dtype: "f16", access: "read", vectors: true },
      s: { dtype: "f16", access: "read", vectors: true },
      octets: { dtype: "i32", access: "read", vectors: degree > 2 },
      result: { dtype: "f32", access: "write" },
    },
    parameters: LINE_PARAMETERS,
    body: () => body(tiles, columns, s.shape[4], degree, headDim, x.octets),
  };
  const result = empty([rows, columns], device, "f32");
  device.dispatch(source, {
    tensors: { x: x.values, s, octets, result },
    parameters: lineParameters(plan, lines, states),
    workgroups: [Math.ceil(chunkRows(plan) / tokens), ...device.spread(lines)],
  });
  return result;
}

/** The same without the column for sums, where subgroups can share the others out: the gradient of values has no use for it. */
export function readValues(
  plan: SequencePlan,
  tiles: PowerTiles,
  x: Packed,
  states: ChunkStates,
  octets: Tensor,
): Tensor {
  const { stride, sumAt } = valueOctets(plan.valueDim, tiles);
  const columns = OCTET * (sumAt % tiles.read.across === 0 ? sumAt : stride);
  return read(plan, tiles, x, states, octets, columns);
}
