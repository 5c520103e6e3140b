import { webgpuDevice } from "../../../devices/webgpu/device.js";
import { each } from "../../../devices/webgpu/each.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { type Column, columnMatrices, declareSums, matrices } from "../../../devices/webgpu/matrix-text.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { Packed } from "../../power-attention/matrix-units/pack.js";
import { keepRows, scoreAll, spread, storeRows, tilesAhead } from "../../power-attention/matrix-units/pairs-text.js";
import {
  eachOctet,
  fours,
  halvesOf,
  lengthOf,
  ROW_TABLE,
  SHARES,
  SOFTMAX_TEXT,
  softmaxConstants,
  vectors,
  walkLine,
  written,
} from "./text.js";
import type { SoftmaxTiles } from "./tiles.js";

/**
 * A row's highest score so far weighs this power of two when the row's level is set, and may rise to the next before it has to be
 * set anew; values may rise by the third beyond the largest so far. Together they stay below 2^15, the last power of two of
 * f16; below the start are 20 powers of two of its normal numbers and ten more.
 */
const EXPONENTS = { START_EXPONENT: 6, MOST_EXPONENT: 13, VALUE_EXPONENT: 2 };

/** Sums name_i_j times a factor of each row, through the memory of the scores, where a subgroup has `others` columns at a time. */
const rescale = (own: number, columns: Column[], others: number, { M }: SoftmaxTiles) => {
  const blocks = Math.ceil(Math.max(...columns.map(({ octet, width }) => 8 * octet + width)) / others);
  const inBlock = (block: number, text: (at: string, width: number, name: string) => string) =>
    each(own, (i) =>
      columns
        .map(({ octet, width }, j) => {
          const column = 8 * octet - block * others;
          if (column < 0 || column >= others) return "";
          return text(`(ownRow + ${i * M}u) * SCORE_STRIDE + ownScore / 4u + ${column / 4}u`, width, `sum_${i}_${j}`);
        })
        .join("\n"),
    );
  return each(
    blocks,
    (block) => `
        workgroupBarrier();
        ${inBlock(block, (at, _, name) => `subgroupMatrixStore<row_major>(&scores, ${at}, ${name}, SCORE_STRIDE);`)}
        workgroupBarrier();
        for (var n = part; n < OTHERS / 4u; n += PARTS) { scores[row * SCORE_STRIDE + n] *= change; }
        workgroupBarrier();
        ${inBlock(block, (at, width, name) => `${name} = subgroupMatrixLoad<Result${width}, row_major>(&scores, ${at}, SCORE_STRIDE);`)}`,
  );
};

const WEIGHTS = { array: "weights", stride: "WEIGHT_STRIDE", at: "step / 8u" };
const OWN_OCTET = "across * (Y_OCTETS / ACROSS)";

const body = (tiles: SoftmaxTiles, xOctets: number, yOctets: number) => {
  const { rows, keys, down, across } = tiles.softmax;
  const own = rows / (down * tiles.M);
  const steps = (xOctets * 8) / tiles.K;
  const keyMatrices = columnMatrices(keys / across, tiles);
  const columns = columnMatrices((8 * yOctets) / across, tiles);
  const ahead = tilesAhead(down * across * tiles.subgroupSize, keys);
  const keyTile = ahead("keys", xOctets, (n) => `load4_k((keyRow0 + key0) * X_OCTETS + ${n})`);
  const valueTile = ahead("values", yOctets, (n) => `load4_v((keyRow0 + key0) * Y_OCTETS + ${n})`);
  const fetch = `${keyTile.fetch}
    ${valueTile.fetch}
    keyExponent = bitcast<vec4f>(load4_kExponents((keyRow0 + key0) / 4u + lane % (OTHERS / 4u)));
    valueExponent = bitcast<vec4f>(load4_vExponents((keyRow0 + key0) / 4u + lane % (OTHERS / 4u)));`;
  return `${matrices(tiles)}
${SOFTMAX_TEXT}
const NOTHING = -1e30;
var<workgroup> keys: array<vec4u, OTHERS * X_STRIDE>;
var<workgroup> values: array<vec4u, OTHERS * Y_STRIDE>;
var<workgroup> scores: array<vec4f, ROWS * SCORE_STRIDE>;
var<workgroup> weights: array<vec4u, ROWS * WEIGHT_STRIDE>;
var<workgroup> keyPowers: array<vec4f, OTHERS / 4>;
var<workgroup> valuePowers: array<vec4f, OTHERS / 4>;
var<workgroup> partial: array<f32, LANES>;
var<workgroup> rises: atomic<u32>;

struct Weighed { sum: f32, leaves: bool }

// Weights of a lane's part of a row: their sum apart from the values' powers, and whether one may leave f16.
fn weigh(row: u32, part: u32, place: u32, factor: f32, level: f32, valueFactor: f32) -> Weighed {
  var sum = vec4f(0);
  var largest = vec4f(0);
  var largestValue = vec4f(0);
  ${eachOctet(`let ends = seen(place - 8u * octet);
    ${halvesOf((h) => `var p_${h} = exp2(scores[at + ${h}u] * keyPowers[2u * octet + ${h}u] * factor - level);`)}
    ${halvesOf((h) => `var v_${h} = valuePowers[2u * octet + ${h}u] * valueFactor;`)}
    if (ends < 8u) {
      ${halvesOf(
        (h) => `p_${h} = select(vec4f(0), p_${h}, before(${4 * h}u, ends));
      v_${h} = select(vec4f(0), v_${h}, before(${4 * h}u, ends));`,
      )}
    }
    ${halvesOf((h) => `let w_${h} = p_${h} * v_${h};`)}
    sum += p_0 + p_1;
    largest = max(largest, max(p_0, p_1));
    largestValue = max(largestValue, max(v_0, v_1));
    weights[row * WEIGHT_STRIDE + octet] = vec4u(four_halves(w_0), four_halves(w_1));`)}
  let leaves = any(largest > vec4f(exp2(MOST_EXPONENT))) || any(largestValue > vec4f(exp2(VALUE_EXPONENT)));
  return Weighed(sum.x + sum.y + sum.z + sum.w, leaves);
}

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
  let inLine = min(first + row, CHUNK_ROWS - 1u);
  let factor = P.scale * exp2(load_qExponents(row0 + inLine));
  var level = NOTHING;
  var valueUnit = 1.17549435e-38; // the smallest power of two
  var total = 0.0;
  ${keepRows("q", "q", "X_OCTETS", own, steps, tiles)}
  ${declareSums(own, columns)}
  let end = min(CHUNK_ROWS, first + ROWS);
  var key0 = 0u;
  var keyExponent = vec4f(0);
  var valueExponent = vec4f(0);
  ${keyTile.declare}
  ${valueTile.declare}
  ${walkLine({
    ...{ at: "key0", from: "0u", end: "end", fetch },
    keep: `${keyTile.keep}
    ${valueTile.keep}
    if (lane < OTHERS / 4u) {
      keyPowers[lane] = exp2(keyExponent);
      valuePowers[lane] = exp2(valueExponent);
    }
    if (lane == 0u) { atomicStore(&rises, 0u); }`,
    scores: scoreAll("q", "keys", "X_STRIDE", "scores", keyMatrices, own, steps, tiles, "ownScore"),
    weigh: `let place = first + row - now;
    var weighed = Weighed(0.0, false);
    if (now > 0u) {
      weighed = weigh(row, part, place, factor, level, 1.0 / valueUnit);
      if (weighed.leaves) { atomicStore(&rises, 1u); }
    }
    let rising = workgroupUniformLoad(&rises);
    if (now == 0u || rising > 0u) {
      // Some rows' weights may leave f16: their levels are set anew, and what was summed at the old ones follows. Those of other
      // rows stay, so that no row depends on another.
      var top = vec4f(NOTHING);
      var unit = vec4f(valueUnit);
      for (var octet = 0u; octet < WEIGHT_OCTETS; octet++) {
        let at = row * SCORE_STRIDE + 2u * octet;
        let ends = seen(place - 8u * octet);
        ${halvesOf(
          (h) => `let x_${h} = scores[at + ${h}u] * keyPowers[2u * octet + ${h}u] * factor;
        top = max(top, select(vec4f(NOTHING), x_${h}, before(${4 * h}u, ends)));
        unit = max(unit, select(vec4f(0), valuePowers[2u * octet + ${h}u], before(${4 * h}u, ends)));`,
        )}
      }
      let highest = max(max(top.x, top.y), max(top.z, top.w));
      let largest = max(max(unit.x, unit.y), max(unit.z, unit.w));
      let newLevel = select(level, highest - START_EXPONENT, highest > level + MOST_EXPONENT);
      let newUnit = select(valueUnit, largest, largest > exp2(VALUE_EXPONENT) * valueUnit);
      let shrink = exp2(level - newLevel);
      total *= shrink;
      let change = shrink * (valueUnit / newUnit);
      level = newLevel;
      valueUnit = newUnit;
      weighed = weigh(row, part, place, factor, level, 1.0 / valueUnit);
      if (now > 0u) {
        ${rescale(own, columns, keys / across, tiles)}
      }
      workgroupBarrier();
    }
    total += weighed.sum;
    for (var step = 0u; step < OTHERS; step += MATRIX_K) {
      ${spread("sum", WEIGHTS, "values", "Y_STRIDE", own, columns, tiles, OWN_OCTET)}
    }`,
  })}
  if (PARTS > 1u) {
    partial[lane] = total;
    workgroupBarrier();
    total = 0.0;
    for (var k = 0u; k < PARTS; k++) { total += partial[row + k * ROWS]; }
  }
  if (part == 0u && first + row < CHUNK_ROWS) {
    let at = row0 + first + row;
    let logSum = level + log2(total);
    store_table(LEVEL * P.rows + at, logSum);
    store_table(HIGHEST * P.rows + at, min(0.0, level + MOST_EXPONENT - logSum));
    store_table(FACTOR * P.rows + at, valueUnit / total);
  }
  ${storeRows("sum", "result", "8u * Y_OCTETS", own, columns, tiles, OWN_OCTET)}
}`;
};

export interface Attended {
  /** f32 [rows of q, 8 · octets of v] */
  sums: Tensor;
  /** f32 [3, rows of q]: see below. */
  table: Tensor;
}

/**
 * Σ_j p_ij v_j over the keys of a query's line up to itself, of packed vectors, where p_ij = exp(s_ij) times some factor of the
 * row. `table` has for each row the logarithm to base 2 of Σ_j exp(s_ij); that of the largest exp(s_ij) / Σ, or a
 * little more; and what the sums are to be multiplied with to be the output.
 *
 * A row's weights are 2^(s_ij log₂e − level), with a level that only changes where one of them would leave f16: elements of
 * matrices cannot be reached one by one, so that sums go through workgroup memory to follow it.
 */
export function attend(
  plan: { lines: number; lineRows: number; members: number; scale: number },
  tiles: SoftmaxTiles,
  { q, k, v }: { q: Packed; k: Packed; v: Packed },
): Attended {
  const device = webgpuDevice(q.values);
  const { lines, lineRows, members, scale } = plan;
  const rows = lines * lineRows;
  const tile = tiles.softmax;
  const source: KernelSource = {
    name: "softmax-on-matrix-units",
    constants: { ...softmaxConstants(tiles, tile, tile.keys, q.octets, v.octets), ...ROW_TABLE, ...EXPONENTS },
    tensors: {
      q: vectors,
      k: vectors,
      v: vectors,
      qExponents: { dtype: "f32", access: "read" },
      kExponents: fours,
      vExponents: fours,
      result: written,
      table: written,
    },
    parameters: { lines: "u32", lineRows: "u32", members: "u32", rows: "u32", scale: "f32" },
    body: () => body(tiles, q.octets, v.octets),
  };
  const sums = empty([rows, 8 * v.octets], device, "f32");
  const table = empty([lengthOf(ROW_TABLE), rows], device, "f32");
  const [x, y = 1] = device.spread(lines);
  device.dispatch(source, {
    tensors: {
      ...{ q: q.values, k: k.values, v: v.values },
      ...{ qExponents: q.exponents, kExponents: k.exponents, vExponents: v.exponents },
      result: sums,
      table,
    },
    parameters: { lines, lineRows, members, rows, scale: scale * Math.LOG2E },
    workgroups: [x, y, Math.ceil(lineRows / tile.rows)],
  });
  return { sums, table };
}
