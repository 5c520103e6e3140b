import { each } from "../../../devices/webgpu/each.js";
import type { Binding } from "../../../devices/webgpu/kernel.js";
import { type Matrices, matrixConstants, rowStride } from "../../../devices/webgpu/matrix-text.js";
import { HALVES, SEEN } from "../../power-attention/matrix-units/text.js";

/** Tables hold a row of numbers for each quantity, with a number for each packed row. */
export const ROW_TABLE = { LEVEL: 0, HIGHEST: 1, FACTOR: 2 };
export const QUERY_TABLE = { PAIR_LEVEL: 0, DELTA: 1, POWER: 2, FACTOR: 3, LEVEL: 4 };
export const KEY_TABLE = { POWER: 0, VALUE_POWER: 1, LEVEL: 2, PULL: 3, FACTOR: 4, VALUE_FACTOR: 5 };
export const lengthOf = (table: Record<string, number>) => Object.keys(table).length;

/** Weights are kept below 2^15, the last power of two of f16: they keep most digits. */
export const WEIGHT_EXPONENT = 15;

export const vectors: Binding = { dtype: "f16", access: "read", vectors: true };
/** Numbers four at a time. */
export const fours: Binding = { dtype: "f32", access: "read", vectors: true };
export const written: Binding = { dtype: "f32", access: "write" };

/**
 * What all three kernels are made of: rows are shared out to subgroups down, the columns of scores and of sums to those across,
 * and all step through `others`.
 */
export function softmaxConstants(
  units: Matrices,
  { rows, down, across }: { rows: number; down: number; across: number },
  others: number,
  xOctets: number,
  yOctets: number,
): Record<string, number> {
  return {
    ...matrixConstants(units),
    X_OCTETS: xOctets,
    X_STRIDE: rowStride(xOctets),
    Y_OCTETS: yOctets,
    Y_STRIDE: rowStride(yOctets),
    ROWS: rows,
    OTHERS: others,
    DOWN: down,
    ACROSS: across,
    SCORE_STRIDE: rowStride(others / 4),
    WEIGHT_STRIDE: rowStride(others / 8),
    WEIGHT_EXPONENT,
  };
}

/**
 * What begins a kernel after `matrices`. A lane looks after one row, with PARTS − 1 others: octets part, part + PARTS, … of
 * the row's scores are its own.
 */
export const SOFTMAX_TEXT = `
const LANES = DOWN * ACROSS * SUBGROUP;
const OWN_ROWS = ROWS / DOWN;
const PARTS = LANES / ROWS;
const WEIGHT_OCTETS = OTHERS / 8;
${HALVES}${SEEN}
fn four_halves(x: vec4f) -> vec2u { return vec2u(two_halves(x.x, x.y), two_halves(x.z, x.w)); }
// Of four columns from \`start\` on, those before \`end\`.
fn before(start: u32, end: u32) -> vec4<bool> { return vec4u(0u, 1u, 2u, 3u) + start < vec4u(end); }
`;

/** A subgroup's and a lane's share, in the workgroup's function. */
export const SHARES = `let ownRow = lane / SUBGROUP / ACROSS * OWN_ROWS;
  let across = lane / SUBGROUP % ACROSS;
  let ownScore = across * (OTHERS / ACROSS);
  let row = select(lane % ROWS, lane, PARTS == 1u);
  let part = select(lane / ROWS, 0u, PARTS == 1u);`;

/**
 * The walk of a workgroup's rows over tiles of their line, `now` at one of them and `at` where the next is fetched. Of each what was
 * fetched ahead is kept, scores are made, and `weigh` does the rest.
 */
export const walkLine = (walk: {
  at: string;
  from: string;
  end: string;
  fetch: string;
  keep: string;
  scores: string;
  weigh: string;
}) => `${walk.fetch}
  for (var now = ${walk.from}; now < ${walk.end}; now += OTHERS) {
    workgroupBarrier();
    ${walk.keep}
    workgroupBarrier();
    // The last once more, rather than a branch: lanes would wait at its end for what was fetched.
    ${walk.at} = min(now + OTHERS, CHUNK_ROWS - OTHERS);
    ${walk.fetch}
    ${walk.scores}
    workgroupBarrier();
    ${walk.weigh}
  }`;

/** Text for each octet of scores that is the lane's. */
export const eachOctet = (text: string) => `for (var turn = 0u; turn < WEIGHT_OCTETS / PARTS; turn++) {
    let octet = part + turn * PARTS;
    let at = row * SCORE_STRIDE + 2u * octet;
    ${text}
  }`;

/** Text for both halves of an octet. */
export const halvesOf = (text: (h: number) => string) => each(2, text);

/** A number of a table that a kernel sees in fours. */
export const numberOf = (table: string, rows: string) => `
fn number_of_${table}(quantity: u32, row: u32) -> f32 {
  let n = quantity * P.${rows} + row;
  return bitcast<f32>(load4_${table}(n / 4u)[n & 3u]);
}
`;
