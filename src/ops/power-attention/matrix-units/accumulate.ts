import { webgpuDevice } from "../../../devices/webgpu/device.js";
import { each } from "../../../devices/webgpu/each.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import {
  columnMatrices,
  declareSums,
  matrices,
  multiplyAdd,
  rowStride,
  storeSums,
  tileAhead,
  turnsOf,
} from "../../../devices/webgpu/matrix-text.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SequencePlan } from "../contract.js";
import { featureOrder, GROUP, OCTET, SQUARE_KINDS, squareGroups } from "./features.js";
import { accumulateHigher } from "./higher-features.js";
import type { Levels } from "./levels.js";
import { chunkRows, octetAt, type Packed, ROW_MULTIPLE, rowAt } from "./pack.js";
import { MAKE_FEATURES, type PowerTiles, powerConstants } from "./tiles.js";

/**
 * Σ_t weight_t · φ(x_t) y_tᵀ over the tokens of a chunk: [features × tokens] by [tokens × columns]. Features are made in
 * workgroup memory, token by token, and read from there transposed.
 */
const body = (tiles: PowerTiles, columns: number, degree: number, ends: number, xOctets: number, inBlocks: boolean) => {
  const { groups, steps, down, across } = tiles.accumulate;
  const lanes = down * across * tiles.subgroupSize;
  // At degree 2 a lane makes features of the same two blocks all along, and fetches its next tokens' while it multiplies.
  // Nothing may be computed from what is fetched before it is needed: a lane waits where it first uses a load.
  const ahead = degree === 2;
  const { count: ownTokens, at, within } = turnsOf(steps * groups, lanes);
  const laneAt = (k: number) => `(${at(k)})`;
  const values = tileAhead(
    "values",
    { lines: steps, octets: columns / 8, stride: rowStride(columns / 8), lanes },
    (n) => `load4_y((row0 + base) * Y_OCTETS + ${n})`,
  );
  // Where a tile's first row begins, and a token's octet after that: a tile of as many rows as a block begins with it.
  const firstRow = rowAt("(row0 + base)", inBlocks && steps < ROW_MULTIPLE);
  const ofToken = (token: string, octet: string) => octetAt(inBlocks ? token : `${token} * X_OCTETS`, octet, inBlocks);
  const fetchFeatures = each(
    ownTokens,
    (k) => `low_${k} = load4_x(${firstRow} + lowAt_${k});
      high_${k} = load4_x(${firstRow} + highAt_${k});
      weight_${k} = load_tokens(4u * (row0 + base) + tokenAt_${k});`,
  );
  const makeAhead = each(ownTokens, (k) =>
    within(
      k,
      `{ let weight = f16(exp2(FEATURE_EXPONENT) * weight_${k});
      let at = (${laneAt(k)} % STEPS) * PHI_STRIDE + 8u * (${laneAt(k)} / STEPS);
      switch (kind_${k}) {
        case ${SQUARE_KINDS.pair}u: { make_square(low_${k}, high_${k}, weight, at); }
        case ${SQUARE_KINDS.triangles}u: { make_triangles(low_${k}, high_${k}, weight, at); }
        default: {
          // Few workgroups come here, so that nothing is fetched ahead for it.
          ${each(Math.min(ends, OCTET), (o) => `make_ends(load4_x(${firstRow} + ${ofToken(`${laneAt(k)} % STEPS`, `min(highOctet_${k} + ${2 * o}u, X_OCTETS - 1u)`)}), weight, at + ${o}u);`)}
        }
      } }`,
    ),
  );
  const make = `for (var n = lane; n < STEPS * GROUPS; n += LANES) {
        let token = n % STEPS;
        let group = n / STEPS;
        let row = row0 + base + token;
        let weight = f16(exp2(FEATURE_EXPONENT) * load_tokens(4u * row + 3u));
        make_octets(row, weight, 8u * (id.x * GROUPS + group), 8u, token * PHI_STRIDE + 8u * group);
      }`;
  const higher = accumulateHigher(degree, xOctets, steps * groups, steps, lanes);
  const fetch = `${ahead ? fetchFeatures : ""}${higher?.fetch ?? ""}
    ${values.fetch}`;
  const own = (groups * GROUP) / (down * tiles.M);
  const matricesAcross = columnMatrices(columns / across, tiles);
  return `${matrices(tiles)}
const LANES = DOWN * ACROSS * SUBGROUP;
const PHI_STRIDE = GROUPS * 8 + 1;
const OWN_ROWS = GROUPS * 64 / DOWN;
const OWN_COLUMNS = COLUMNS / ACROSS;
var<workgroup> phi: array<vec4u, STEPS * PHI_STRIDE>;
var<workgroup> values: array<vec4u, STEPS * Y_STRIDE>;
${higher?.functions ?? MAKE_FEATURES}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let state = id.y + id.z * groups.y; // counts b, key head, chunk
  let chunk = state % P.chunks;
  if (state >= P.states || chunk == P.unread) { return; }
  let line = state / P.chunks;
  let ownRow = ((lane / SUBGROUP) / ACROSS) * OWN_ROWS;
  let ownColumn = ((lane / SUBGROUP) % ACROSS) * OWN_COLUMNS;
  ${declareSums(own, matricesAcross)}
  ${values.declare}
  ${
    ahead
      ? each(
          ownTokens,
          (k) => `let word_${k} = bitcast<u32>(load_octets(8u * (id.x * GROUPS + ${laneAt(k)} / STEPS)));
  let kind_${k} = (word_${k} >> 16u) & 255u;
  let highOctet_${k} = word_${k} >> 24u;
  let lowAt_${k} = ${ofToken(`${laneAt(k)} % STEPS`, `((word_${k} & 255u) / 8u)`)};
  let highAt_${k} = ${ofToken(`${laneAt(k)} % STEPS`, `highOctet_${k}`)};
  let tokenAt_${k} = 4u * (${laneAt(k)} % STEPS) + 3u;
  var low_${k} = vec4u(0); var high_${k} = vec4u(0); var weight_${k} = 0.0;`,
        )
      : (higher?.declare ?? "")
  }
  for (var member = 0u; member < P.members; member++) {
    let row0 = ((line * P.members + member) * P.chunks + chunk) * CHUNK_ROWS;
    var base = 0u;
    ${fetch}
    ${higher?.keep ?? ""}
    for (var done = 0u; done < CHUNK_ROWS; done += STEPS) {
      workgroupBarrier();
      ${values.keep}
      ${ahead ? makeAhead : (higher?.make ?? make)}
      workgroupBarrier();
      // The last once more, rather than a branch: lanes would wait at its end for what was fetched.
      base = min(base + STEPS, CHUNK_ROWS - STEPS);
      ${fetch}
      for (var step = 0u; step < STEPS; step += MATRIX_K) {
        ${multiplyAdd(
          own,
          matricesAcross,
          (i) =>
            `subgroupMatrixLoad<Left, col_major>(&phi, step * PHI_STRIDE + ownRow / 8u + ${(i * tiles.M) / 8}u, PHI_STRIDE)`,
          ({ octet, width }) =>
            `subgroupMatrixLoad<Right${width}, row_major>(&values, step * Y_STRIDE + ownColumn / 8u + ${octet}u, Y_STRIDE)`,
        )}
      }
      ${higher?.keep ?? ""}
    }
  }
  let feature = id.x * GROUPS * 64u + ownRow;
  ${storeSums(
    own,
    matricesAcross,
    "s",
    "COLUMNS",
    (i) => `P.s_at + (state * P.features + feature + ${i * tiles.M}u) * COLUMNS + ownColumn`,
    { inside: (i) => `feature + ${i * tiles.M}u < P.features` },
  )}
}`;
};

/**
 * Sums of the features of x, keys or queries, with packed y beside them: f32 [B, H, N, features, columns], without the
 * powers of two that `levels` and y's exponents hold, and unweighted by multiplicity. Those of a chunk that are `unread` are not made.
 */
export function accumulate(
  plan: SequencePlan,
  tiles: PowerTiles,
  x: Packed,
  y: Packed,
  { tokens }: Levels,
  octets: Tensor,
  unread: number = plan.chunks,
): Tensor {
  const { batch, heads, chunks, degree, headDim } = plan;
  const device = webgpuDevice(x.values);
  const { groups, steps, down, across } = tiles.accumulate;
  const columns = y.octets * 8;
  const { features } = featureOrder(headDim, degree, groups);
  const states = batch * heads * chunks;
  const source: KernelSource = {
    name: "accumulate-on-matrix-units",
    constants: {
      ...powerConstants(tiles),
      DEGREE: degree,
      HEAD_DIM: headDim,
      X_OCTETS: x.octets,
      Y_OCTETS: y.octets,
      Y_STRIDE: rowStride(y.octets),
      COLUMNS: columns,
      CHUNK_ROWS: chunkRows(plan),
      STEPS: steps,
      GROUPS: groups,
      DOWN: down,
      ACROSS: across,
      BLOCKS: x.blocks !== undefined,
    },
    tensors: {
      x: { dtype: "f16", access: "read", vectors: true },
      y: { dtype: "f16", access: "read", vectors: true },
      tokens: { dtype: "f32", access: "read" },
      octets: { dtype: "i32", access: "read", vectors: degree > 2 },
      s: { dtype: "f32", access: "write" },
    },
    parameters: { states: "u32", chunks: "u32", members: "u32", features: "u32", unread: "u32" },
    body: () => body(tiles, columns, degree, squareGroups(headDim).ends, x.octets, x.blocks !== undefined),
  };
  const s = empty([batch, heads, chunks, features, columns], device, "f32");
  device.dispatch(source, {
    tensors: { x: x.blocks ?? x.values, y: y.values, tokens, octets, s },
    parameters: { states, chunks, members: x.values.shape[0] / (states * chunkRows(plan)), features, unread },
    workgroups: [Math.ceil(features / (groups * GROUP)), ...device.spread(states)],
  });
  return s;
}
