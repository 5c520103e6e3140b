import { webgpuDevice } from "../../../devices/webgpu/device.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { columnMatrices, declareSums, matrices } from "../../../devices/webgpu/matrix-text.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { Packed } from "../../power-attention/matrix-units/pack.js";
import {
  inPlaceOf,
  keepRows,
  scoreAll,
  spread,
  storeRows,
  tilesAhead,
  WEIGHT_PLACE,
} from "../../power-attention/matrix-units/pairs-text.js";
import {
  eachOctet,
  fours,
  halvesOf,
  KEY_TABLE,
  numberOf,
  QUERY_TABLE,
  SHARES,
  SOFTMAX_TEXT,
  softmaxConstants,
  vectors,
  walkLine,
  written,
} from "./text.js";
import type { SoftmaxTiles } from "./tiles.js";

/** Four numbers of a table, of four rows of a tile. Lanes beyond OTHERS / 4 keep none; a branch for that would wait for the others'. */
const four = (table: string, quantity: string, rows: string, row: string) =>
  `bitcast<vec4f>(load4_${table}((${quantity} * P.${rows} + ${row}) / 4u + lane % (OTHERS / 4u)))`;

/** The first octet of a subgroup's columns. */
const [OWN_X, OWN_Y] = ["X", "Y"].map((name) => `across * (${name}_OCTETS / ACROSS)`);

const prefixed = (prefix: string, table: Record<string, number>) =>
  Object.fromEntries(Object.entries(table).map(([name, at]) => [`${prefix}_${name}`, at]));

/** Σ_j g_ij k_j with g_ij = P_ij (dy_i·v_j − δ_i), each row divided by a power of two. */
const queriesBody = (tiles: SoftmaxTiles, xOctets: number, yOctets: number) => {
  const { rows, keys, down, across } = tiles.softmaxQueries;
  const own = rows / (down * tiles.M);
  const [xSteps, ySteps] = [xOctets, yOctets].map((octets) => (octets * 8) / tiles.K);
  const keyMatrices = columnMatrices(keys / across, tiles);
  const columns = columnMatrices((8 * xOctets) / across, tiles);
  const ahead = tilesAhead(down * across * tiles.subgroupSize, keys);
  const keyTile = ahead("keys", xOctets, (n) => `load4_k((keyRow0 + key0) * X_OCTETS + ${n})`);
  const valueTile = ahead("values", yOctets, (n) => `load4_v((keyRow0 + key0) * Y_OCTETS + ${n})`);
  const fetch = `${keyTile.fetch}
    ${valueTile.fetch}
    keyPower = ${four("keyTable", "KEY_POWER", "keyRows", "keyRow0 + key0")};
    valuePower = ${four("keyTable", "KEY_VALUE_POWER", "keyRows", "keyRow0 + key0")};`;
  return `${matrices(tiles)}
${SOFTMAX_TEXT}${WEIGHT_PLACE}${numberOf("queryTable", "queryRows")}
var<workgroup> keys: array<vec4u, OTHERS * X_STRIDE>;
var<workgroup> values: array<vec4u, OTHERS * Y_STRIDE>;
var<workgroup> scores: array<vec4u, ROWS * SCORE_STRIDE>; // four f32 each, and then weights
var<workgroup> changes: array<vec4u, ROWS * SCORE_STRIDE>; // likewise
var<workgroup> keyPowers: array<vec4f, OTHERS / 4>;
var<workgroup> valuePowers: array<vec4f, OTHERS / 4>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let line = id.x + id.y * groups.x; // counts b, query head
  if (line >= P.lines) { return; }
  let CHUNK_ROWS = P.lineRows;
  let keyRow0 = (line / P.members) * CHUNK_ROWS;
  let first = (groups.z - 1u - id.z) * ROWS; // those with most keys begin first
  let row0 = line * CHUNK_ROWS;
  ${SHARES}
  let tableRow = row0 + min(first + row, CHUNK_ROWS - 1u);
  let factor = P.scale * number_of_queryTable(QUERY_POWER, tableRow);
  let level = number_of_queryTable(QUERY_PAIR_LEVEL, tableRow);
  let delta = number_of_queryTable(QUERY_DELTA, tableRow);
  ${keepRows("q", "q", "X_OCTETS", own, xSteps, tiles)}
  ${keepRows("dy", "dy", "Y_OCTETS", own, ySteps, tiles)}
  ${declareSums(own, columns, "dq")}
  let end = min(CHUNK_ROWS, first + ROWS);
  var key0 = 0u;
  var keyPower = vec4f(0);
  var valuePower = vec4f(0);
  ${keyTile.declare}
  ${valueTile.declare}
  ${walkLine({
    ...{ at: "key0", from: "0u", end: "end", fetch },
    keep: `${keyTile.keep}
    ${valueTile.keep}
    if (lane < OTHERS / 4u) {
      keyPowers[lane] = keyPower;
      valuePowers[lane] = valuePower;
    }`,
    scores: `${scoreAll("q", "keys", "X_STRIDE", "scores", keyMatrices, own, xSteps, tiles, "ownScore")}
    ${scoreAll("dy", "values", "Y_STRIDE", "changes", keyMatrices, own, ySteps, tiles, "ownScore")}`,
    weigh: `${eachOctet(`let ends = seen(first + row - now - 8u * octet);
      ${halvesOf(
        (h) => `let power_${h} = keyPowers[2u * octet + ${h}u];
      var p_${h} = exp2(bitcast<vec4f>(scores[at + ${h}u]) * power_${h} * factor - level);`,
      )}
      if (ends < 8u) {
        ${halvesOf((h) => `p_${h} = select(vec4f(0), p_${h}, before(${4 * h}u, ends));`)}
      }
      ${halvesOf((h) => `let g_${h} = p_${h} * (bitcast<vec4f>(changes[at + ${h}u]) * valuePowers[2u * octet + ${h}u] - delta) * power_${h};`)}
      scores[row * SCORE_STRIDE + weight_place(octet)] = vec4u(four_halves(g_0), four_halves(g_1));`)}
    workgroupBarrier();
    for (var step = 0u; step < OTHERS; step += MATRIX_K) {
      ${spread("dq", inPlaceOf("scores"), "keys", "X_STRIDE", own, columns, tiles, OWN_X)}
    }`,
  })}
  ${storeRows("dq", "dQ", "8u * X_OCTETS", own, columns, tiles, OWN_X)}
}`;
};

/** Σ_i g_ij q_i and Σ_i P_ij dy_i over the queries from a key on, each row divided by powers of two. */
const keysBody = (tiles: SoftmaxTiles, xOctets: number, yOctets: number) => {
  const { rows, queries, down, across } = tiles.softmaxKeys;
  const own = rows / (down * tiles.M);
  const [xSteps, ySteps] = [xOctets, yOctets].map((octets) => (octets * 8) / tiles.K);
  const queryMatrices = columnMatrices(queries / across, tiles);
  const [xColumns, yColumns] = [xOctets, yOctets].map((octets) => columnMatrices((8 * octets) / across, tiles));
  const ahead = tilesAhead(down * across * tiles.subgroupSize, queries);
  const queryTile = ahead("queries", xOctets, (n) => `load4_q((queryRow0 + query0) * X_OCTETS + ${n})`);
  const gradientTile = ahead("gradients", yOctets, (n) => `load4_dy((queryRow0 + query0) * Y_OCTETS + ${n})`);
  const fetch = `${queryTile.fetch}
    ${gradientTile.fetch}
    power = ${four("queryTable", "QUERY_POWER", "queryRows", "queryRow0 + query0")};
    delta = ${four("queryTable", "QUERY_DELTA", "queryRows", "queryRow0 + query0")};
    queryLevel = ${four("queryTable", "QUERY_LEVEL", "queryRows", "queryRow0 + query0")};`;
  return `${matrices(tiles)}
${SOFTMAX_TEXT}${WEIGHT_PLACE}${numberOf("keyTable", "keyRows")}
var<workgroup> queries: array<vec4u, OTHERS * X_STRIDE>;
var<workgroup> gradients: array<vec4u, OTHERS * Y_STRIDE>;
var<workgroup> scores: array<vec4u, ROWS * SCORE_STRIDE>; // four f32 each, and then weights
var<workgroup> changes: array<vec4u, ROWS * SCORE_STRIDE>; // likewise
var<workgroup> powers: array<vec4f, OTHERS / 4>;
var<workgroup> deltas: array<vec4f, OTHERS / 4>;
var<workgroup> queryLevels: array<vec4f, OTHERS / 4>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let line = id.x + id.y * groups.x; // counts b, key head
  if (line >= P.lines) { return; }
  let CHUNK_ROWS = P.lineRows;
  let first = id.z * ROWS; // those with most queries begin first
  let row0 = line * CHUNK_ROWS;
  ${SHARES}
  let tableRow = row0 + min(first + row, CHUNK_ROWS - 1u);
  let factor = P.scale * number_of_keyTable(KEY_POWER, tableRow);
  let level = number_of_keyTable(KEY_LEVEL, tableRow);
  let valuePower = number_of_keyTable(KEY_VALUE_POWER, tableRow);
  let pullPower = number_of_keyTable(KEY_PULL, tableRow);
  ${keepRows("k", "k", "X_OCTETS", own, xSteps, tiles)}
  ${keepRows("v", "v", "Y_OCTETS", own, ySteps, tiles)}
  ${declareSums(own, xColumns, "dk")}
  ${declareSums(own, yColumns, "dv")}
  var power = vec4f(0);
  var delta = vec4f(0);
  var queryLevel = vec4f(0);
  ${queryTile.declare}
  ${gradientTile.declare}
  for (var member = 0u; member < P.members; member++) {
    let queryRow0 = (line * P.members + member) * CHUNK_ROWS;
    var query0 = first / OTHERS * OTHERS;
    ${walkLine({
      ...{ at: "query0", from: "first / OTHERS * OTHERS", end: "CHUNK_ROWS", fetch },
      keep: `${queryTile.keep}
      ${gradientTile.keep}
      if (lane < OTHERS / 4u) {
        powers[lane] = power;
        deltas[lane] = delta;
        queryLevels[lane] = queryLevel;
      }`,
      scores: `${scoreAll("k", "queries", "X_STRIDE", "scores", queryMatrices, own, xSteps, tiles, "ownScore")}
      ${scoreAll("v", "gradients", "Y_STRIDE", "changes", queryMatrices, own, ySteps, tiles, "ownScore")}`,
      weigh: `${eachOctet(`let place = first + row - now - 8u * octet; // of the row among the octet's queries; beyond 2^31 where it is before them
        let begins = select(0u, min(place, 8u), place < 0x80000000u);
        ${halvesOf(
          (h) => `let power_${h} = powers[2u * octet + ${h}u];
        var w_${h} = exp2(bitcast<vec4f>(scores[at + ${h}u]) * power_${h} * factor - (queryLevels[2u * octet + ${h}u] + level));`,
        )}
        if (begins > 0u) {
          ${halvesOf((h) => `w_${h} = select(w_${h}, vec4f(0), before(${4 * h}u, begins));`)}
        }
        ${halvesOf((h) => `let h_${h} = w_${h} * (bitcast<vec4f>(changes[at + ${h}u]) * valuePower - deltas[2u * octet + ${h}u]) * (power_${h} * pullPower);`)}
        scores[row * SCORE_STRIDE + weight_place(octet)] = vec4u(four_halves(w_0), four_halves(w_1));
        changes[row * SCORE_STRIDE + weight_place(octet)] = vec4u(four_halves(h_0), four_halves(h_1));`)}
      workgroupBarrier();
      for (var step = 0u; step < OTHERS; step += MATRIX_K) {
        { ${spread("dv", inPlaceOf("scores"), "gradients", "Y_STRIDE", own, yColumns, tiles, OWN_Y)} }
        { ${spread("dk", inPlaceOf("changes"), "queries", "X_STRIDE", own, xColumns, tiles, OWN_X)} }
      }`,
    })}
  }
  ${storeRows("dk", "dK", "8u * X_OCTETS", own, xColumns, tiles, OWN_X)}
  ${storeRows("dv", "dV", "8u * Y_OCTETS", own, yColumns, tiles, OWN_Y)}
}`;
};

export interface GradientInputs {
  q: Packed;
  k: Packed;
  v: Packed;
  dy: Packed;
  /** As softmaxLevels gives them. */
  queryTable: Tensor;
  keyTable: Tensor;
}

/** f32, a row for each packed row, still to be multiplied with the tables' factors. */
export function softmaxGradients(
  plan: { lines: number; lineRows: number; members: number; scale: number },
  tiles: SoftmaxTiles,
  { q, k, v, dy, queryTable, keyTable }: GradientInputs,
): { dQ: Tensor; dK: Tensor; dV: Tensor } {
  const { lines, lineRows, members } = plan;
  const device = webgpuDevice(q.values);
  const queryRows = lines * lineRows;
  const keyRows = queryRows / members;
  const dQ = empty([queryRows, 8 * q.octets], device, "f32");
  const dK = empty([keyRows, 8 * q.octets], device, "f32");
  const dV = empty([keyRows, 8 * v.octets], device, "f32");
  const shared = { q: vectors, k: vectors, v: vectors, dy: vectors, queryTable: fours, keyTable: fours };
  const given = { q: q.values, k: k.values, v: v.values, dy: dy.values, queryTable, keyTable };
  const tables = { ...prefixed("QUERY", QUERY_TABLE), ...prefixed("KEY", KEY_TABLE) };
  const parameters: KernelSource["parameters"] = {
    ...{ lines: "u32", lineRows: "u32", members: "u32", queryRows: "u32", keyRows: "u32", scale: "f32" },
  };
  const numbers = { lineRows, members, queryRows, keyRows, scale: plan.scale * Math.LOG2E };
  const workgroups = (count: number, tile: { rows: number }) => {
    const [x, y = 1] = device.spread(count);
    return [x, y, Math.ceil(lineRows / tile.rows)];
  };
  const { softmaxQueries, softmaxKeys } = tiles;
  device.dispatch(
    {
      name: "softmax-gradient-queries",
      constants: { ...softmaxConstants(tiles, softmaxQueries, softmaxQueries.keys, q.octets, v.octets), ...tables },
      tensors: { ...shared, dQ: written },
      parameters,
      body: () => queriesBody(tiles, q.octets, v.octets),
    },
    {
      tensors: { ...given, dQ },
      parameters: { lines, ...numbers },
      workgroups: workgroups(lines, softmaxQueries),
    },
  );
  device.dispatch(
    {
      name: "softmax-gradient-keys",
      constants: { ...softmaxConstants(tiles, softmaxKeys, softmaxKeys.queries, q.octets, v.octets), ...tables },
      tensors: { ...shared, dK: written, dV: written },
      parameters,
      body: () => keysBody(tiles, q.octets, v.octets),
    },
    {
      tensors: { ...given, dK, dV },
      parameters: { lines: lines / members, ...numbers },
      workgroups: workgroups(lines / members, softmaxKeys),
    },
  );
  return { dQ, dK, dV };
}
