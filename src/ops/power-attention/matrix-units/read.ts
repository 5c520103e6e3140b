import { webgpuDevice } from "../../../devices/webgpu/device.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import {
  columnMatrices,
  declareSums,
  matrices,
  multiplyAdd,
  rowStride,
  storeSums,
  tileAhead,
} from "../../../devices/webgpu/matrix-text.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SequencePlan } from "../contract.js";
import { readHigher } from "./higher-features.js";
import { chunkRows, type Packed } from "./pack.js";
import { MAKE_FEATURES, type PowerTiles, powerConstants } from "./tiles.js";

/** φ(x_t)ᵀ s of a token's chunk: [tokens × features] by [features × columns], 64 features at a time, made as needed. */
const body = (tiles: PowerTiles, columns: number, degree: number, xOctets: number) => {
  const { tokens, down, across } = tiles.read;
  const own = tokens / (down * tiles.M);
  const matricesAcross = columnMatrices(columns / across, tiles);
  // A part of the state comes into registers while the one before is multiplied.
  const part = tileAhead(
    "part",
    { lines: 64, octets: columns / 8, stride: rowStride(columns / 8), lanes: down * across * tiles.subgroupSize },
    (n) => `load4_s(s0 + ${n})`,
  );
  const higher = readHigher(degree, xOctets, tokens, down * across * tiles.subgroupSize);
  const make = `for (var n = lane; n < TOKENS; n += LANES) {
      // Rows beyond the chunk repeat its last: nothing is stored for them.
      make_group(row0 + min(token0 + n, CHUNK_ROWS - 1u), f16(exp2(FEATURE_EXPONENT)), group, n * PHI_STRIDE);
    }`;
  return `${matrices(tiles)}
const LANES = DOWN * ACROSS * SUBGROUP;
const PHI_STRIDE = 9;
const OCTETS = COLUMNS / 8;
const OWN_ROWS = TOKENS / DOWN;
const OWN_COLUMNS = COLUMNS / ACROSS;
var<workgroup> phi: array<vec4u, TOKENS * PHI_STRIDE>;
var<workgroup> part: array<vec4u, 64 * S_STRIDE>;
${higher?.functions ?? MAKE_FEATURES}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let line = id.y + id.z * groups.y; // counts b, head, chunk
  if (line >= P.lines) { return; }
  let chunk = line % P.chunks;
  if (chunk < P.firstChunk) { return; }
  let state = (line / P.chunks / P.members) * P.chunks + chunk;
  let token0 = id.x * TOKENS;
  let row0 = line * CHUNK_ROWS;
  let ownRow = ((lane / SUBGROUP) / ACROSS) * OWN_ROWS;
  let ownColumn = ((lane / SUBGROUP) % ACROSS) * OWN_COLUMNS;
  ${declareSums(own, matricesAcross)}
  var s0 = state * P.features * OCTETS;
  ${part.declare}
  ${part.fetch}
  ${higher?.begin ?? ""}
  for (var group = 0u; group < P.features / 64u; group++) {
    workgroupBarrier();
    ${part.keep}
    ${higher?.make ?? make}
    workgroupBarrier();
    s0 += 64u * OCTETS;
    if (64u * group + 64u < P.features) {
      ${part.fetch}
    }
    for (var step = 0u; step < 64u; step += MATRIX_K) {
      ${multiplyAdd(
        own,
        matricesAcross,
        (i) =>
          `subgroupMatrixLoad<Left, row_major>(&phi, (ownRow + ${i * tiles.M}u) * PHI_STRIDE + step / 8u, PHI_STRIDE)`,
        ({ octet, width }) =>
          `subgroupMatrixLoad<Right${width}, row_major>(&part, step * S_STRIDE + ownColumn / 8u + ${octet}u, S_STRIDE)`,
      )}
    }
  }
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
 * What packed x reads from its chunks' states, f16 [B, H, N, features, columns] weighted by multiplicity: f32
 * [rows of x, columns], without the powers of two of either. Chunks before `firstChunk` are left alone.
 */
export function read(
  plan: SequencePlan,
  tiles: PowerTiles,
  x: Packed,
  s: Tensor,
  octets: Tensor,
  firstChunk: number,
): Tensor {
  const { batch, heads, chunks, degree } = plan;
  const device = webgpuDevice(x.values);
  const { tokens, down, across } = tiles.read;
  const columns = s.shape[4];
  const rows = x.values.shape[0];
  const lines = rows / chunkRows(plan);
  const source: KernelSource = {
    name: "read-on-matrix-units",
    constants: {
      ...powerConstants(tiles),
      DEGREE: degree,
      X_OCTETS: x.octets,
      S_STRIDE: rowStride(columns / 8),
      COLUMNS: columns,
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
    parameters: { lines: "u32", chunks: "u32", members: "u32", features: "u32", firstChunk: "u32" },
    body: body(tiles, columns, degree, x.octets),
  };
  const result = empty([rows, columns], device, "f32");
  device.dispatch(source, {
    tensors: { x: x.values, s, octets, result },
    parameters: { lines, chunks, members: lines / (batch * heads * chunks), features: s.shape[3], firstChunk },
    workgroups: [Math.ceil(chunkRows(plan) / tokens), ...device.spread(lines)],
  });
  return result;
}
