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
import { featureOrder, GROUP, OCTET, squareGroups } from "./features.js";
import { accumulateHigher } from "./higher-features.js";
import type { Levels } from "./levels.js";
import { chunkRows, type Packed, ROW_MULTIPLE } from "./pack.js";
import { MAKE_FEATURES, type PowerTiles, powerConstants } from "./tiles.js";

/**
 * Σ_t weight_t · φ(x_t) y_tᵀ over the tokens of a chunk: [features × tokens] by [tokens × columns]. Features are made in
 * workgroup memory, token by token, and read from there transposed.
 */
const body = (
  tiles: PowerTiles,
  columns: number,
  degree: number,
  headDim: number,
  xOctets: number,
  inBlocks: boolean,
) => {
  const { groups, steps, down, across } = tiles.accumulate;
  const lanes = down * across * tiles.subgroupSize;
  const { features } = featureOrder(headDim, degree, groups);
  const all = Math.ceil(features / GROUP);
  const whole = Math.floor(all / groups);
  const matricesAcross = columnMatrices(columns / across, tiles);
  const values = tileAhead(
    "values",
    { lines: steps, octets: columns / 8, stride: rowStride(columns / 8), lanes },
    (n) => `load4_y((row0 + base) * Y_OCTETS + ${n})`,
  );
  /** For workgroups of `count` groups of features, of which the last have group `end` before them. */
  const sumUp = (count: number, end: number) => {
    const own = Math.ceil((count * GROUP) / (down * tiles.M));
    const made =
      degree === 2
        ? accumulateSquares(headDim, { steps, count, end, lanes, inBlocks })
        : (accumulateHigher(degree, xOctets, steps * count, steps, lanes) ?? OF_DEGREE_1);
    const fetch = `${made.fetch}
    ${values.fetch}`;
    return `let ownRow = ((lane / SUBGROUP) / ACROSS) * ${own * tiles.M}u;
  ${declareSums(own, matricesAcross)}
  ${values.declare}
  ${made.declare}
  for (var member = 0u; member < P.members; member++) {
    let row0 = ((line * P.members + member) * P.chunks + chunk) * CHUNK_ROWS;
    var base = 0u;
    ${fetch}
    ${made.keep}
    for (var done = 0u; done < CHUNK_ROWS; done += STEPS) {
      workgroupBarrier();
      ${values.keep}
      ${made.make}
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
      ${made.keep}
    }
  }
  let feature = id.x * GROUPS * 64u + ownRow;
  ${storeSums(
    own,
    matricesAcross,
    "s",
    "COLUMNS",
    (i) => `P.s_at + (state * P.features + feature + ${i * tiles.M}u) * COLUMNS + ownColumn`,
    count === groups && end * GROUP <= features ? {} : { inside: (i) => `feature + ${i * tiles.M}u < P.features` },
  )}`;
  };
  const texts = [
    ...(whole > 0 ? [sumUp(groups, whole * groups)] : []),
    ...(all % groups > 0 ? [sumUp(all % groups, all)] : []),
  ];
  return `${matrices(tiles)}
const LANES = DOWN * ACROSS * SUBGROUP;
const PHI_STRIDE = GROUPS * 8 + 1;
const OWN_COLUMNS = COLUMNS / ACROSS;
var<workgroup> phi: array<vec4u, STEPS * PHI_STRIDE>;
var<workgroup> values: array<vec4u, STEPS * Y_STRIDE>;
${accumulateHigher(degree, xOctets, steps * groups, steps, lanes)?.functions ?? MAKE_FEATURES}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let state = id.y + id.z * groups.y; // counts b, key head, chunk
  let chunk = state % P.chunks;
  if (state >= P.states || chunk == P.unread) { return; }
  let line = state / P.chunks;
  let ownColumn = ((lane / SUBGROUP) % ACROSS) * OWN_COLUMNS;
  ${texts.length === 1 ? texts[0] : `if (id.x < ${whole}u) {\n${texts[0]}\n} else {\n${texts[1]}\n}`}
}`;
};

/** Features as they are needed, by their words. */
const OF_DEGREE_1 = {
  declare: "",
  fetch: "",
  keep: "",
  make: `for (var n = lane; n < STEPS * GROUPS; n += LANES) {
        let token = n % STEPS;
        let group = n / STEPS;
        let row = row0 + base + token;
        let weight = f16(exp2(FEATURE_EXPONENT) * load_tokens(4u * row + 3u));
        make_octets(row, weight, 8u * (id.x * GROUPS + group), 8u, token * PHI_STRIDE + 8u * group);
      }`,
};

/**
 * At degree 2 a lane makes features of the same two blocks all along, and fetches its next tokens' while it multiplies. Nothing
 * may be computed from what is fetched before it is needed: a lane waits where it first uses a load.
 */
function accumulateSquares(
  headDim: number,
  {
    steps,
    count,
    end,
    lanes,
    inBlocks,
  }: { steps: number; count: number; end: number; lanes: number; inBlocks: boolean },
) {
  const { blocks, pairs, triangles, ends } = squareGroups(headDim);
  const { count: turns, at, within } = turnsOf(steps * count, lanes);
  const laneAt = (k: number) => `(${at(k)})`;
  // An octet of a token's row; where its tile begins counts rows.
  const octetAt = (token: string, octet: string) =>
    inBlocks ? `${token} + ${octet} * ${ROW_MULTIPLE}u` : `${token} * X_OCTETS + ${octet}`;
  const inBlock = inBlocks && steps < ROW_MULTIPLE ? ` - base % ${ROW_MULTIPLE}u * (X_OCTETS - 1u)` : "";
  const place = `(row0 + base) * X_OCTETS${inBlock}`;
  const kinds = (k: number) => {
    const to = `(${laneAt(k)} % STEPS) * PHI_STRIDE + 8u * (${laneAt(k)} / STEPS)`;
    const weight = `f16(exp2(FEATURE_EXPONENT) * weight_${k})`;
    const lastOctet = each(
      Math.min(ends, OCTET),
      (o) => `if (8u * (group_${k} - ${pairs + triangles}u) + ${o}u < ${ends}u) {
          let block = min(16u * (group_${k} - ${pairs + triangles}u) + ${2 * o + 1}u, ${blocks - 1}u);
          make_ends(load4_x(${place} + ${octetAt(`${laneAt(k)} % STEPS`, "block")}), ${weight}, ${to} + ${o}u);
        }`,
    );
    const texts = [
      [0, `make_square(low_${k}, high_${k}, ${weight}, ${to});`],
      [pairs, `make_triangles(low_${k}, high_${k}, ${weight}, ${to});`],
      [pairs + triangles, lastOctet],
    ] as const;
    return texts
      .filter(([from]) => from < end)
      .map(([, text], kind, { length }) =>
        kind + 1 < length ? `if (group_${k} < ${texts[kind + 1][0]}u) { ${text} } else` : `{ ${text} }`,
      )
      .join(" ");
  };
  return {
    declare: each(
      turns,
      (k) => `let group_${k} = min(id.x * GROUPS + ${laneAt(k)} / STEPS, ${end - 1}u);
  let word_${k} = bitcast<u32>(load_octets(8u * group_${k}));
  let lowAt_${k} = ${octetAt(`${laneAt(k)} % STEPS`, `((word_${k} & 255u) / 8u)`)};
  let highAt_${k} = ${octetAt(`${laneAt(k)} % STEPS`, `(word_${k} >> 24u)`)};
  let tokenAt_${k} = 4u * (${laneAt(k)} % STEPS) + 3u;
  var low_${k} = vec4u(0); var high_${k} = vec4u(0); var weight_${k} = 0.0;`,
    ),
    fetch: each(
      turns,
      (k) => `low_${k} = load4_x(${place} + lowAt_${k});
      high_${k} = load4_x(${place} + highAt_${k});
      weight_${k} = load_tokens(4u * (row0 + base) + tokenAt_${k});`,
    ),
    keep: "",
    make: each(turns, (k) => within(k, kinds(k))),
  };
}

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
    body: body(tiles, columns, degree, headDim, x.octets, x.blocks !== undefined),
  };
  const s = empty([batch, heads, chunks, features, columns], device, "f32");
  device.dispatch(source, {
    tensors: { x: x.blocks ?? x.values, y: y.values, tokens, octets, s },
    parameters: { states, chunks, members: x.values.shape[0] / (states * chunkRows(plan)), features, unread },
    workgroups: [Math.ceil(features / (groups * GROUP)), ...device.spread(states)],
  });
  return s;
}
