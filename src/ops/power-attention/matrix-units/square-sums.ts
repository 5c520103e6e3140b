import { webgpuDevice } from "../../../devices/webgpu/device.js";
import { each } from "../../../devices/webgpu/each.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { columnMatrices, matrices, rowStride } from "../../../devices/webgpu/matrix-text.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SequencePlan } from "../contract.js";
import { OCTET } from "./features.js";
import { chunkRows, type Packed } from "./pack.js";
import { keepRows } from "./pairs-text.js";
import type { ChunkStates } from "./scan.js";
import { LINE_AND_STATE } from "./text.js";
import { type PowerTiles, powerConstants } from "./tiles.js";

/** Σ_b x_b z[a, b], twice that where a = b: rows of x, as they are, by the state's column for sums as a square. */
const body = (tiles: PowerTiles, octets: number) => {
  const { M, K, subgroupSize } = tiles;
  const own = subgroupSize / M;
  const steps = (octets * OCTET) / K;
  return `${matrices(tiles)}
const LANES = DOWN * SUBGROUP;
const WIDTH = X_OCTETS * 8u;
// Halves from row to row; what no feature fills stays 0.
const STRIDE = 8u * SQUARE_STRIDE;
var<workgroup> square: array<f16, WIDTH * STRIDE>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  ${LINE_AND_STATE}
  let first = id.x * LANES;
  let row0 = line * CHUNK_ROWS;
  let ownRow = lane / SUBGROUP * SUBGROUP;
  ${keepRows("x", "x", "X_OCTETS", own, steps, tiles)}
  // Octets of a block come together, one for each element up to the block's end: those of low above high weigh nothing.
  for (var block = 0u; block < BLOCKS; block++) {
    let before = 32u * block * (block + 1u);
    for (var n = lane; n < 64u * (block + 1u); n += LANES) {
      let low = n / 8u;
      let high = 8u * block + n % 8u;
      if (low > high) { continue; }
      let z = load_z(state * P.features + before + n);
      let weight = f16(select(z, 2.0 * z, low == high));
      square[high * STRIDE + low] = weight;
      square[low * STRIDE + high] = weight;
    }
  }
  workgroupBarrier();
  ${columnMatrices(octets * OCTET, tiles)
    .map(
      ({ octet, width }) => `{
  ${each(steps, (step) => `let right_${step} = subgroupMatrixLoad<Right${width}, col_major>(&square, ${octet * OCTET}u * STRIDE + ${step * K}u, STRIDE);`)}
  ${each(
    own,
    (i) => `if (first + ownRow + ${i * M}u < CHUNK_ROWS) {
    var sum = Result${width}();
    ${each(steps, (step) => `sum = subgroupMatrixMultiplyAccumulate(x_${i}_${step}, right_${step}, sum);`)}
    subgroupMatrixStore<row_major>(&result, P.result_at + (row0 + first + ownRow + ${i * M}u) * WIDTH + ${octet * OCTET}u, sum, WIDTH);
  }`,
  )}
  }`,
    )
    .join("\n")}
}`;
};

/**
 * f32 [rows of x, 8 · octets], without powers of two: the gradient of x through features at degree 2 from sums of weights, for
 * a gradient of sums of 1 in each row. It comes by itself, since the state's column for sums has a power of two of its own.
 */
export function squareSums(plan: SequencePlan, tiles: PowerTiles, x: Packed, { z, reached }: ChunkStates): Tensor {
  const { heads, batch, chunks, headDim } = plan;
  const device = webgpuDevice(x.values);
  const rows = x.values.shape[0];
  const lines = rows / chunkRows(plan);
  const down = tiles.square.down * tiles.square.tokens;
  const source: KernelSource = {
    name: "square-sums",
    constants: {
      ...powerConstants(tiles),
      X_OCTETS: x.octets,
      SQUARE_STRIDE: rowStride(x.octets),
      BLOCKS: Math.ceil(headDim / OCTET),
      CHUNK_ROWS: chunkRows(plan),
      DOWN: down,
    },
    tensors: {
      x: { dtype: "f16", access: "read", vectors: true },
      z: { dtype: "f32", access: "read" },
      result: { dtype: "f32", access: "write" },
    },
    parameters: { lines: "u32", chunks: "u32", members: "u32", features: "u32", firstChunk: "u32", endChunk: "u32" },
    body: body(tiles, x.octets),
  };
  const result = empty([rows, OCTET * x.octets], device, "f32");
  device.dispatch(source, {
    tensors: { x: x.values, z, result },
    parameters: { lines, chunks, members: lines / (batch * heads * chunks), features: z.shape[3], ...reached },
    workgroups: [Math.ceil(chunkRows(plan) / (down * tiles.subgroupSize)), ...device.spread(lines)],
  });
  return result;
}
