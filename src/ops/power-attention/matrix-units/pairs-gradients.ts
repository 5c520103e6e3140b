import { webgpuDevice } from "../../../devices/webgpu/device.js";
import { each } from "../../../devices/webgpu/each.js";
import type { Binding, KernelSource } from "../../../devices/webgpu/kernel.js";
import { columnMatrices, declareSums, matrices, rowStride } from "../../../devices/webgpu/matrix-text.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SequencePlan } from "../contract.js";
import type { Levels } from "./levels.js";
import { chunkRows, type Packed } from "./pack.js";
import { GRADIENT_EXPONENT, POWER, WEIGHT_EXPONENT } from "./pairs.js";
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

const SHARED = `${HALVES}${POWER}${SEEN}${WEIGHT_PLACE}
// A gradient of a sum of weights, in two halves.
fn whole(word: u32) -> f32 { return f32(halves(word).x) + f32(halves(word).y); }
// How far a change of a weight falls short of the largest that there is of packed vectors, in powers of two.
fn change_gap(change: f32) -> f32 { return select(5.0 - log2(abs(change)), 1e30, change == 0.0); }
`;

/** Adds up what lanes of a row have, when all tiles are done, in memory that is free then. */
const storeFlow = (value: string) => `workgroupBarrier();
      changes[lane] = vec4u(bitcast<u32>(${value}));
      workgroupBarrier();
      if (lane < ROWS && first + lane < CHUNK_ROWS) {
        var total = 0.0;
        for (var n = lane; n < LANES; n += ROWS) { total += bitcast<f32>(changes[n].x); }
        store_flow(row0 + first + lane, total);
      }`;

interface Sizes {
  xOctets: number;
  yOctets: number;
  sumAt: number;
}

/** Σ_j g_ij k_j with g_ij = (dy_i·v_j + dsum_i) · (q_i·k_j)^(p−1) · 2^(L_j − the largest L up to i). */
const queriesBody = (tiles: PowerTiles, { xOctets, yOctets, sumAt }: Sizes) => {
  const { rows, keys, down } = tiles.pairsQueries;
  const own = rows / (down * tiles.M);
  const [xSteps, ySteps] = [xOctets, sumAt].map((octets) => (octets * 8) / tiles.K);
  const keyMatrices = columnMatrices(keys, tiles);
  const columns = columnMatrices(xOctets * 8, tiles);
  const ahead = tilesAhead(down * tiles.subgroupSize, keys);
  const keyTile = ahead("keys", xOctets, (n) => `load4_k((keyRow0 + key0) * X_OCTETS + ${n})`);
  const valueTile = ahead("values", yOctets, (n) => `load4_v((keyRow0 + key0) * Y_OCTETS + ${n})`);
  const fetch = `${keyTile.fetch}
    ${valueTile.fetch}
    if (lane < OTHERS) { level = load_keyTokens(4u * (keyRow0 + key0 + lane)); }`;
  // A lane keeps to a row: the tile's rules see to it.
  const walk = `
    let row = lane % ROWS;
    let own = min(first + row, CHUNK_ROWS - 1u);
    let strongest = load_keyTokens(4u * (keyRow0 + own) + 1u);
    let dsum = whole(load4_dy((row0 + own) * Y_OCTETS + SUM_AT).x);
    ${letLift("lift", "lifts")}
    let most = strongest - GRADIENT_EXPONENT - lift;
    var flow = 0.0;
    key0 = 0u;
    ${walkTiles({
      ...{ at: "key0", others: "OTHERS", end: "end", fetch },
      keep: `${keyTile.keep}
      ${valueTile.keep}
      if (lane < OTHERS) { keyLevels[lane] = level; }`,
      scores: `${scoreAll("q", "keys", "X_STRIDE", "scores", keyMatrices, own, xSteps, tiles)}
      ${scoreAll("dy", "values", "Y_STRIDE", "changes", keyMatrices, own, ySteps, tiles)}`,
      weigh: `${takeScores("score", "scores")}
        ${takeScores("change", "changes")}
        let ends = seen(first + row - now - 8u * octet);
        ${whileMeasuring(
          measure(
            "lifts",
            (k) => `${k}u < ends`,
            (k) =>
              `strongest - keyLevels[8u * octet + ${k}u] + fall(score_${k}, DEGREE - 1u) + change_gap(change_${k} + dsum)`,
          ),
        )}
${each(
  8,
  (k) =>
    `let g_${k} = select(0.0, (change_${k} + dsum) * power(score_${k}, DEGREE - 1u) * exp2(keyLevels[8u * octet + ${k}u] - most), ${k}u < ends);
        flow += g_${k} * score_${k};`,
)}
        scores[row * SCORE_STRIDE + weight_place(octet)] = ${octetOf("g")};`,
      add: spread("dq", inPlaceOf("scores"), "keys", "X_STRIDE", own, columns, tiles),
    })}`;
  const result = {
    ...{ name: "dq", columns, lifts: "lifts", binding: "dQ", width: "(8u * X_OCTETS)", scrap: "scores" },
    store: `${storeRows("dq", "dQ", "8u * X_OCTETS", own, columns, tiles)}
      ${storeFlow("flow * exp2(-lift)")}`,
  };
  // A query of zeros, one at which no gradient arrived and one beyond the sequence have no level.
  const counts = "load_queryTokens(4u * (row0 + inChunk)) > -1e8";
  return `${matrices(tiles)}
const LANES = DOWN * SUBGROUP;
const OWN_ROWS = ROWS / DOWN;
const WEIGHT_OCTETS = OTHERS / 8;
var<workgroup> keys: array<vec4u, OTHERS * X_STRIDE>;
var<workgroup> values: array<vec4u, OTHERS * Y_STRIDE>;
var<workgroup> scores: array<vec4u, ROWS * SCORE_STRIDE>; // four f32 each, and then weights
var<workgroup> changes: array<vec4u, ROWS * SCORE_STRIDE>;
var<workgroup> keyLevels: array<f32, OTHERS>;
${SHARED}${declareLifts(["lifts"])}
@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let line = id.y + id.z * groups.y; // counts b, query head, chunk
  if (line >= P.lines) { return; }
  let chunk = line % P.chunks;
  let keyRow0 = ((line / P.chunks / P.members) * P.chunks + chunk) * CHUNK_ROWS;
  let first = id.x * ROWS;
  let row0 = line * CHUNK_ROWS;
  let ownRow = (lane / SUBGROUP) * OWN_ROWS;
  ${keepRows("q", "q", "X_OCTETS", own, xSteps, tiles)}
  ${keepRows("dy", "dy", "Y_OCTETS", own, ySteps, tiles)}
  ${declareSums(own, columns, "dq")}
  let end = min(CHUNK_ROWS, first + ROWS);
  var key0 = 0u;
  var level = 0.0;
  ${keyTile.declare}
  ${valueTile.declare}
  ${looks(walk, [result], own, tiles, counts)}
}`;
};

/**
 * Σ_i h_ij q_i and Σ_i w_ij dy_i over the queries from a key on, with L and largest ones of queries:
 * w_ij = (q_i·k_j)^p · 2^(L_i − the largest L from j on), h_ij = (dy_i·v_j + dsum_i) · (q_i·k_j)^(p−1) · the same.
 */
const keysBody = (tiles: PowerTiles, { xOctets, yOctets, sumAt }: Sizes) => {
  const { rows, queries, down } = tiles.pairsKeys;
  const own = rows / (down * tiles.M);
  const [xSteps, ySteps] = [xOctets, sumAt].map((octets) => (octets * 8) / tiles.K);
  const queryMatrices = columnMatrices(queries, tiles);
  const [xColumns, yColumns] = [xOctets, sumAt].map((octets) => columnMatrices(octets * 8, tiles));
  const ahead = tilesAhead(down * tiles.subgroupSize, queries);
  const queryTile = ahead("queries", xOctets, (n) => `load4_q((queryRow0 + query0) * X_OCTETS + ${n})`);
  const gradientTile = ahead("gradients", yOctets, (n) => `load4_dy((queryRow0 + query0) * Y_OCTETS + ${n})`);
  const fetch = `${queryTile.fetch}
    ${gradientTile.fetch}
    if (lane < OTHERS) {
      level = load_queryTokens(4u * (queryRow0 + query0 + lane));
      dsum = load4_dy((queryRow0 + query0 + lane) * Y_OCTETS + SUM_AT).x;
    }`;
  const walk = `
  let row = lane % ROWS;
  let strongest = load_later(row0 + min(first + row, CHUNK_ROWS - 1u));
  ${letLift("lift", "lifts")}
  ${letLift("pullLift", "pullLifts")}
  let most = strongest - lift - WEIGHT_EXPONENT;
  let pull = exp2(pullLift - lift + GRADIENT_EXPONENT - WEIGHT_EXPONENT);
  var flow = 0.0;
  for (var member = 0u; member < P.members; member++) {
    let queryRow0 = (((line / P.chunks) * P.members + member) * P.chunks + chunk) * CHUNK_ROWS;
    var query0 = first / OTHERS * OTHERS;
    ${walkTiles({
      ...{ at: "query0", others: "OTHERS", end: "CHUNK_ROWS", fetch },
      keep: `${queryTile.keep}
      ${gradientTile.keep}
      if (lane < OTHERS) {
        queryLevels[lane] = level;
        dsums[lane] = whole(dsum);
      }`,
      scores: `${scoreAll("k", "queries", "X_STRIDE", "scores", queryMatrices, own, xSteps, tiles)}
      ${scoreAll("v", "gradients", "Y_STRIDE", "changes", queryMatrices, own, ySteps, tiles)}`,
      weigh: `${takeScores("score", "scores")}
        ${takeScores("change", "changes")}
        let place = now + 8u * octet - first - row; // of the octet's first query after the row; beyond 2^31 where it is before
        let begins = select(0u, min(0u - place, 8u), place >= 0x80000000u);
        ${whileMeasuring(
          `${measure(
            "lifts",
            (k) => `${k}u >= begins`,
            (k) => `strongest - queryLevels[8u * octet + ${k}u] + fall(score_${k}, DEGREE)`,
          )}
          ${measure(
            "pullLifts",
            (k) => `${k}u >= begins`,
            (k) =>
              `strongest - queryLevels[8u * octet + ${k}u] + fall(score_${k}, DEGREE - 1u) + change_gap(change_${k} + dsums[8u * octet + ${k}u])`,
          )}`,
        )}
${each(
  8,
  (
    k,
  ) => `let below_${k} = select(0.0, power(score_${k}, DEGREE - 1u) * exp2(queryLevels[8u * octet + ${k}u] - most), ${k}u >= begins);
        let w_${k} = below_${k} * score_${k};
        let whole_${k} = change_${k} + dsums[8u * octet + ${k}u];
        let h_${k} = pull * below_${k} * whole_${k};
        flow += w_${k} * whole_${k};`,
)}
        scores[row * SCORE_STRIDE + weight_place(octet)] = ${octetOf("w")};
        changes[row * SCORE_STRIDE + weight_place(octet)] = ${octetOf("h")};`,
      add: `{ ${spread("dv", inPlaceOf("scores"), "gradients", "Y_STRIDE", own, yColumns, tiles)} }
        { ${spread("dk", inPlaceOf("changes"), "queries", "X_STRIDE", own, xColumns, tiles)} }`,
    })}
  }`;
  const results = [
    {
      ...{
        name: "dk",
        columns: xColumns,
        lifts: "pullLifts",
        binding: "dK",
        width: "(8u * X_OCTETS)",
        scrap: "scores",
      },
      store: `${storeRows("dk", "dK", "8u * X_OCTETS", own, xColumns, tiles)}
      ${storeFlow("flow * exp2(GRADIENT_EXPONENT - WEIGHT_EXPONENT - lift)")}`,
    },
    {
      ...{ name: "dv", columns: yColumns, lifts: "lifts", binding: "dV", width: "(8u * SUM_AT)", scrap: "changes" },
      store: storeRows("dv", "dV", "8u * SUM_AT", own, yColumns, tiles),
    },
  ];
  // Nothing comes from a token's later queries where they have no level.
  const counts = "load_later(row0 + inChunk) > -1e8";
  return `${matrices(tiles)}
const LANES = DOWN * SUBGROUP;
const OWN_ROWS = ROWS / DOWN;
const WEIGHT_OCTETS = OTHERS / 8;
var<workgroup> queries: array<vec4u, OTHERS * X_STRIDE>;
var<workgroup> gradients: array<vec4u, OTHERS * Y_STRIDE>;
var<workgroup> scores: array<vec4u, ROWS * SCORE_STRIDE>; // four f32 each, and then weights
var<workgroup> changes: array<vec4u, ROWS * SCORE_STRIDE>; // likewise
var<workgroup> queryLevels: array<f32, OTHERS>;
var<workgroup> dsums: array<f32, OTHERS>;
${SHARED}${declareLifts(["lifts", "pullLifts"])}
@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let line = id.y + id.z * groups.y; // counts b, key head, chunk
  if (line >= P.lines) { return; }
  let chunk = line % P.chunks;
  let first = id.x * ROWS;
  let row0 = line * CHUNK_ROWS;
  let ownRow = (lane / SUBGROUP) * OWN_ROWS;
  ${keepRows("k", "k", "X_OCTETS", own, xSteps, tiles)}
  ${keepRows("v", "v", "Y_OCTETS", own, ySteps, tiles)}
  ${declareSums(own, xColumns, "dk")}
  ${declareSums(own, yColumns, "dv")}
  var level = 0.0;
  var dsum = 0u;
  ${queryTile.declare}
  ${gradientTile.declare}
  ${looks(walk, results, own, tiles, counts)}
}`;
};

export interface PairsGradientInputs {
  q: Packed;
  k: Packed;
  v: Packed;
  /** As packGradients gives it, with dsum in its column for sums. */
  dy: Packed;
  sumAt: number;
  keys: Levels;
  queries: Levels;
  /** As laterLevels gives them. */
  later: Tensor;
}

/**
 * What the gradients within chunks are made of, f32 without powers of two: at queries, keys and values, a row for each packed row;
 * and the products of packed rows with theirs, q·dQ and k·dK, from weights that were not rounded to f16.
 */
export function pairsGradients(
  plan: SequencePlan,
  tiles: PowerTiles,
  inputs: PairsGradientInputs,
): { dQ: Tensor; dK: Tensor; dV: Tensor; qFlow: Tensor; kFlow: Tensor } {
  const { q, k, v, dy, sumAt, keys, queries, later } = inputs;
  const { chunks, degree } = plan;
  const device = webgpuDevice(q.values);
  const sizes = { xOctets: q.octets, yOctets: v.octets, sumAt };
  const rows = (x: Packed) => x.values.shape[0];
  const lines = (x: Packed) => rows(x) / chunkRows(plan);
  const members = rows(q) / rows(k);
  const dQ = empty([rows(q), 8 * q.octets], device, "f32");
  const dK = empty([rows(k), 8 * k.octets], device, "f32");
  const dV = empty([rows(k), 8 * sumAt], device, "f32");
  const [qFlow, kFlow] = [q, k].map((x) => empty([rows(x)], device, "f32"));
  const vectors: Binding = { dtype: "f16", access: "read", vectors: true };
  const numbers: Binding = { dtype: "f32", access: "read" };
  const result: Binding = { dtype: "f32", access: "write" };
  const constants = (tile: { rows: number; down: number }, others: number) => ({
    ...powerConstants(tiles),
    DEGREE: degree,
    X_OCTETS: q.octets,
    X_STRIDE: rowStride(q.octets),
    Y_OCTETS: v.octets,
    Y_STRIDE: rowStride(v.octets),
    SUM_AT: sumAt,
    SCORE_STRIDE: rowStride(others / 4),
    WEIGHT_EXPONENT,
    GRADIENT_EXPONENT,
    CHUNK_ROWS: chunkRows(plan),
    ROWS: tile.rows,
    OTHERS: others,
    DOWN: tile.down,
  });
  const parameters: KernelSource["parameters"] = { lines: "u32", chunks: "u32", members: "u32" };
  const shared = { q: vectors, k: vectors, v: vectors, dy: vectors };
  const given = { q: q.values, k: k.values, v: v.values, dy: dy.values };
  const groups = (x: Packed, tile: { rows: number }) => [
    Math.ceil(chunkRows(plan) / tile.rows),
    ...device.spread(lines(x)),
  ];
  device.dispatch(
    {
      name: "pairs-gradient-queries",
      constants: constants(tiles.pairsQueries, tiles.pairsQueries.keys),
      tensors: { ...shared, keyTokens: numbers, queryTokens: numbers, dQ: result, flow: result },
      parameters,
      body: () => queriesBody(tiles, sizes),
    },
    {
      tensors: { ...given, keyTokens: keys.tokens, queryTokens: queries.tokens, dQ, flow: qFlow },
      parameters: { lines: lines(q), chunks, members },
      workgroups: groups(q, tiles.pairsQueries),
    },
  );
  device.dispatch(
    {
      name: "pairs-gradient-keys",
      constants: constants(tiles.pairsKeys, tiles.pairsKeys.queries),
      tensors: { ...shared, queryTokens: numbers, later: numbers, dK: result, dV: result, flow: result },
      parameters,
      body: () => keysBody(tiles, sizes),
    },
    {
      tensors: { ...given, queryTokens: queries.tokens, later, dK, dV, flow: kFlow },
      parameters: { lines: lines(k), chunks, members },
      workgroups: groups(k, tiles.pairsKeys),
    },
  );
  return { dQ, dK, dV, qFlow, kFlow };
}
