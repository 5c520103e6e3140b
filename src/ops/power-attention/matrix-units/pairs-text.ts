import { each } from "../../../devices/webgpu/each.js";
import {
  type Column,
  type Matrices,
  multiplyAdd,
  rowStride,
  storeSums,
  tileAhead,
} from "../../../devices/webgpu/matrix-text.js";

/*
 * Pieces of kernels whose workgroups keep rows of one packed tensor and walk over tiles of others. Rows of the workgroup
 * begin at row0 + first, those of a subgroup ownRow further on; a chunk or line of rows has CHUNK_ROWS.
 */

/** Matrices of rows of a packed tensor that a subgroup keeps: name_i_step. Rows beyond the chunk repeat its last matrix. */
export const keepRows = (name: string, binding: string, octets: string, own: number, steps: number, tiles: Matrices) =>
  each(own, (i) =>
    each(
      steps,
      (step) =>
        `let ${name}_${i}_${step} = subgroupMatrixLoad<Left, row_major>(&${binding}, P.${binding}_at / 8u + (row0 + min(first + ownRow + ${i * tiles.M}u, CHUNK_ROWS - MATRIX_M)) * ${octets} + ${(step * tiles.K) / 8}u, ${octets});`,
    ),
  );

/**
 * Products of kept rows with the vectors of a tile in workgroup memory, matrix by matrix, to `target`, in rows of SCORE_STRIDE times
 * four f32. `from`: the first of the vectors that are the subgroup's.
 */
export const scoreAll = (
  kept: string,
  tile: string,
  stride: string,
  target: string,
  columns: Column[],
  own: number,
  steps: number,
  tiles: Matrices,
  from = "",
) =>
  columns
    .map(
      ({ octet, width }) => `{
  ${each(steps, (step) => `let right_${step} = subgroupMatrixLoad<Right${width}, col_major>(&${tile}, ${from ? `(${from} + ${octet * 8}u)` : `${octet * 8}u`} * ${stride} + ${(step * tiles.K) / 8}u, ${stride});`)}
  ${each(
    own,
    (i) => `var score_${i} = Result${width}();
  ${each(steps, (step) => `score_${i} = subgroupMatrixMultiplyAccumulate(${kept}_${i}_${step}, right_${step}, score_${i});`)}
  subgroupMatrixStore<row_major>(&${target}, (ownRow + ${i * tiles.M}u) * SCORE_STRIDE + ${octet * 2}u${from ? ` + ${from} / 4u` : ""}, score_${i}, SCORE_STRIDE);`,
  )}
}`,
    )
    .join("\n");

/** Eight scores of an octet, name_0 … name_7, where `at` is the place of the first four. */
export const takeScores = (name: string, scores: string) => `let ${name}_low = bitcast<vec4f>(${scores}[at]);
  let ${name}_high = bitcast<vec4f>(${scores}[at + 1u]);
  ${each(8, (k) => `let ${name}_${k} = ${name}_${k < 4 ? "low" : "high"}.${"xyzw"[k % 4]};`)}`;

/**
 * Weights lie where the scores were that they are made from: what a lane makes of an octet of scores, 32 bytes, takes 16 of these,
 * and the two octets of a matrix's steps are neighbours. Workgroup memory is what limits how many workgroups run at once.
 */
export const WEIGHT_PLACE = `
fn weight_place(octet: u32) -> u32 { return octet / 2u * 4u + 1u + octet % 2u; }
`;

interface Weights {
  array: string;
  stride: string;
  /** Of a row's weights from `step` on, after the row's own place. */
  at: string;
}

export const inPlaceOf = (scores: string): Weights => ({
  array: scores,
  stride: "SCORE_STRIDE",
  at: "weight_place(step / 8u)",
});

/**
 * name_i_j += weights × vectors of a tile, where `weights` holds [rows × others] and the tile [others × columns]. `from`: the
 * first octet of columns that is the subgroup's.
 */
export const spread = (
  name: string,
  weights: Weights,
  tile: string,
  stride: string,
  own: number,
  columns: Column[],
  tiles: Matrices,
  from = "0u",
) =>
  multiplyAdd(
    own,
    columns,
    (i) =>
      `subgroupMatrixLoad<Left, row_major>(&${weights.array}, (ownRow + ${i * tiles.M}u) * ${weights.stride} + ${weights.at}, ${weights.stride})`,
    ({ octet, width }) =>
      `subgroupMatrixLoad<Right${width}, row_major>(&${tile}, step * ${stride} + ${octet}u + ${from}, ${stride})`,
    name,
  );

/** Stores name_i_j to a binding of rows `width` long. Rows beyond the chunk are left out. */
export const storeRows = (
  name: string,
  binding: string,
  width: string,
  own: number,
  columns: Column[],
  tiles: Matrices,
  from = "0u",
) =>
  storeSums(
    own,
    columns,
    binding,
    width,
    (i) => `P.${binding}_at + (row0 + first + ownRow + ${i * tiles.M}u) * ${width} + 8u * ${from}`,
    { name, inside: (i) => `first + ownRow + ${i * tiles.M}u < CHUNK_ROWS` },
  );

/** Tiles of `others` packed rows that come ahead; see tileAhead. */
export const tilesAhead =
  (lanes: number, others: number) => (name: string, octets: number, source: (n: string) => string) =>
    tileAhead(name, { lines: others, octets, stride: rowStride(octets), lanes }, source);

/**
 * The walk of a workgroup's rows over tiles of `others`, which `at` counts up to `end`. Of each tile what was fetched ahead is kept,
 * scores are made, `weigh` makes weights of those of an octet in a lane's row, in their place, and `add` takes these times a tile.
 */
export const walkTiles = (walk: {
  at: string;
  others: string;
  end: string;
  fetch: string;
  keep: string;
  scores: string;
  weigh: string;
  add: string;
}) => `${walk.fetch}
    loop {
      workgroupBarrier();
      ${walk.keep}
      workgroupBarrier();
      let now = ${walk.at};
      ${walk.at} += ${walk.others};
      if (${walk.at} < ${walk.end}) {
        ${walk.fetch}
      }
      ${walk.scores}
      workgroupBarrier();
      for (var n = lane; n < ROWS * WEIGHT_OCTETS; n += LANES) {
        let octet = n / ROWS;
        let at = row * SCORE_STRIDE + 2u * octet;
        ${walk.weigh}
      }
      workgroupBarrier();
      for (var step = 0u; step < ${walk.others}; step += MATRIX_K) {
        ${walk.add}
      }
      if (${walk.at} >= ${walk.end}) { break; }
    }`;

/** Eight values, name_0 … name_7, as halves. Needs HALVES. */
export const octetOf = (name: string) =>
  `vec4u(${[0, 2, 4, 6].map((k) => `two_halves(${name}_${k}, ${name}_${k + 1})`).join(", ")})`;
