import { webgpuDevice } from "../../../devices/webgpu/device.js";
import { each } from "../../../devices/webgpu/each.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { columnMatrices, declareSums, matrices, rowStride } from "../../../devices/webgpu/matrix-text.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SequencePlan } from "../contract.js";
import type { Levels } from "./levels.js";
import { chunkRows, type Packed, valueOctets } from "./pack.js";
import { declareLifts, letLift, looks, measure, whileMeasuring } from "./pairs-range.js";
import {
  inPlaceOf,
  keepRows,
  octetOf,
  scoreAll,
  spread,
  storeRows,
  takeScores,
  tilesAhead,
  WEIGHT_PLACE,
  walkTiles,
} from "./pairs-text.js";
import { HALVES, SEEN } from "./text.js";
import { type PowerTiles, powerConstants } from "./tiles.js";

/** Powers of dot products of packed rows are at most 1: multiplied by the last power of two of f16, they keep most digits. */
export const WEIGHT_EXPONENT = 15;

/** The same for weights times what arrives at them, which is at most about 2^5 of packed vectors. */
export const GRADIENT_EXPONENT = 10;

/** Powers of dot products. */
export const POWER = `
fn power(x: f32, degree: u32) -> f32 {
  var y = 1.0;
  for (var k = 0u; k < degree; k++) { y *= x; }
  return y;
}
`;

/** Σ_j w_ij v_j over the keys of a query's chunk up to itself; see `pairs`. */
const body = (tiles: PowerTiles, xOctets: number, columns: number, sumAt: number) => {
  const { rows, keys, down } = tiles.pairs;
  const own = rows / (down * tiles.M);
  const xSteps = (xOctets * 8) / tiles.K;
  const keyMatrices = columnMatrices(keys, tiles);
  const valueMatrices = columnMatrices(columns, tiles);
  const ahead = tilesAhead(down * tiles.subgroupSize, keys);
  const keyTile = ahead("keys", xOctets, (n) => `load4_k((keyRow0 + key0) * X_OCTETS + ${n})`);
  const valueTile = ahead("values", columns / 8, (n) => `load4_v((keyRow0 + key0) * V_OCTETS + ${n})`);
  const fetch = `${keyTile.fetch}
    ${valueTile.fetch}
    if (lane < KEYS) { level = load_tokens(4u * (keyRow0 + key0 + lane)); }`;
  // A lane keeps to a row: the tile's rules see to it.
  const walk = `
    let row = lane % ROWS;
    let strongest = load_tokens(4u * (keyRow0 + min(first + row, CHUNK_ROWS - 1u)) + 1u);
    ${letLift("lift", "lifts")}
    let most = strongest - WEIGHT_EXPONENT - lift;
    key0 = 0u;
    ${walkTiles({
      ...{ at: "key0", others: "KEYS", end: "end", fetch },
      keep: `${keyTile.keep}
      ${valueTile.keep}
      if (lane < KEYS) { keyLevels[lane] = level; }`,
      scores: scoreAll("q", "keys", "X_STRIDE", "scores", keyMatrices, own, xSteps, tiles),
      weigh: `${takeScores("score", "scores")}
        let ends = seen(first + row - now - 8u * octet);
        ${whileMeasuring(
          measure(
            "lifts",
            (k) => `${k}u < ends`,
            (k) => `strongest - keyLevels[8u * octet + ${k}u] + fall(score_${k}, DEGREE)`,
          ),
        )}
${each(
  8,
  (k) =>
    `let w_${k} = select(0.0, power(score_${k}, DEGREE) * exp2(keyLevels[8u * octet + ${k}u] - most), ${k}u < ends);`,
)}
        scores[row * SCORE_STRIDE + weight_place(octet)] = ${octetOf("w")};`,
      add: spread("sum", inPlaceOf("scores"), "values", "V_STRIDE", own, valueMatrices, tiles),
    })}`;
  const result = {
    ...{ name: "sum", columns: valueMatrices, lifts: "lifts", binding: "result", width: "COLUMNS", scrap: "scores" },
    store: storeRows("sum", "result", "COLUMNS", own, valueMatrices, tiles),
    sumColumn: 8 * sumAt,
  };
  // A token beyond the sequence has no level, and a query of zeros weighs nothing.
  const counts = "load_tokens(4u * (keyRow0 + inChunk)) > -1e20 && load_exponents(row0 + inChunk) > -1e8";
  return `${matrices(tiles)}
const LANES = DOWN * SUBGROUP;
const OWN_ROWS = ROWS / DOWN;
const V_OCTETS = COLUMNS / 8;
const WEIGHT_OCTETS = KEYS / 8;
var<workgroup> keys: array<vec4u, KEYS * X_STRIDE>;
var<workgroup> values: array<vec4u, KEYS * V_STRIDE>;
var<workgroup> scores: array<vec4u, ROWS * SCORE_STRIDE>; // four f32 each, and then weights
var<workgroup> keyLevels: array<f32, KEYS>;

${HALVES}${POWER}${SEEN}${WEIGHT_PLACE}${declareLifts(["lifts"])}
@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let line = id.y + id.z * groups.y; // counts b, head, chunk
  if (line >= P.lines) { return; }
  let chunk = line % P.chunks;
  let keyRow0 = ((line / P.chunks / P.members) * P.chunks + chunk) * CHUNK_ROWS;
  let first = id.x * ROWS;
  let row0 = line * CHUNK_ROWS;
  let ownRow = (lane / SUBGROUP) * OWN_ROWS;
  ${keepRows("q", "q", "X_OCTETS", own, xSteps, tiles)}
  ${declareSums(own, valueMatrices)}
  let end = min(CHUNK_ROWS, first + ROWS);
  var key0 = 0u;
  var level = 0.0;
  ${keyTile.declare}
  ${valueTile.declare}
  ${looks(walk, [result], own, tiles, counts)}
}`;
};

/**
 * f32 [rows of q, columns]: Σ_j (q_i·k_j)^p · 2^(L_j − the largest L up to i + weightExponent) · v_j of packed vectors.
 */
export function pairs(plan: SequencePlan, tiles: PowerTiles, q: Packed, k: Packed, v: Packed, keys: Levels): Tensor {
  const { batch, heads, chunks, degree } = plan;
  const device = webgpuDevice(q.values);
  const { rows: tileRows, keys: tileKeys, down } = tiles.pairs;
  const columns = 8 * v.octets;
  const { sumAt } = valueOctets(plan.valueDim, tiles);
  const rows = q.values.shape[0];
  const lines = rows / chunkRows(plan);
  const source: KernelSource = {
    name: "pairs-on-matrix-units",
    constants: {
      ...powerConstants(tiles),
      DEGREE: degree,
      X_OCTETS: q.octets,
      X_STRIDE: rowStride(q.octets),
      V_STRIDE: rowStride(v.octets),
      SCORE_STRIDE: rowStride(tileKeys / 4),
      WEIGHT_EXPONENT,
      COLUMNS: columns,
      SUM_AT: sumAt,
      CHUNK_ROWS: chunkRows(plan),
      ROWS: tileRows,
      KEYS: tileKeys,
      DOWN: down,
    },
    tensors: {
      q: { dtype: "f16", access: "read", vectors: true },
      k: { dtype: "f16", access: "read", vectors: true },
      v: { dtype: "f16", access: "read", vectors: true },
      tokens: { dtype: "f32", access: "read" },
      exponents: { dtype: "f32", access: "read" },
      result: { dtype: "f32", access: "write" },
    },
    parameters: { lines: "u32", chunks: "u32", members: "u32" },
    body: () => body(tiles, q.octets, columns, sumAt),
  };
  const result = empty([rows, columns], device, "f32");
  device.dispatch(source, {
    tensors: { q: q.values, k: k.values, v: v.values, tokens: keys.tokens, exponents: q.exponents, result },
    parameters: { lines, chunks, members: lines / (batch * heads * chunks) },
    workgroups: [Math.ceil(chunkRows(plan) / tileRows), ...device.spread(lines)],
  });
  return result;
}
