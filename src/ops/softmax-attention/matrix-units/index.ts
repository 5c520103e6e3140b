import { webgpuDevice } from "../../../devices/webgpu/device.js";
import type { Tensor } from "../../../tensor/tensor.js";
import { OCTET } from "../../power-attention/matrix-units/features.js";
import { chunkRows, type Packed, type PackPlan, packRows } from "../../power-attention/matrix-units/pack.js";
import type { SoftmaxInputs, SoftmaxPlan } from "../contract.js";
import { unpackRows } from "./finish.js";
import { attend } from "./forward.js";
import { softmaxGradients } from "./gradients.js";
import { softmaxLevels } from "./levels.js";
import { KEY_TABLE, QUERY_TABLE, ROW_TABLE } from "./text.js";
import { type SoftmaxTiles, softmaxTiles } from "./tiles.js";

/** The tiles for a call, or undefined where it is one for the portable kernels. */
export function tilesFor(plan: SoftmaxPlan, x: Tensor): SoftmaxTiles | undefined {
  if (x.dtype === "f32" || plan.time === 0) return undefined;
  const { gpu, matrixUnits, tuned } = webgpuDevice(x);
  return softmaxTiles(matrixUnits, gpu.limits, plan, tuned);
}

/** A line is a head of a batch element: one chunk of all tokens. */
function linesOf(plan: SoftmaxPlan): PackPlan & { lines: number; lineRows: number; members: number; scale: number } {
  const { batch, time, queryHeads, heads, scale } = plan;
  const packing = { batch, time, heads, chunkSize: time, chunks: 1 };
  return {
    ...packing,
    lines: batch * queryHeads,
    lineRows: chunkRows(packing),
    members: queryHeads / heads,
    scale,
  };
}

/** What is saved for the backward: sums and numbers of rows, as `attend` gives them, and packed inputs. */
export function softmaxOnMatrixUnits(
  plan: SoftmaxPlan,
  tiles: SoftmaxTiles,
  { q, k, v }: SoftmaxInputs,
): { output: Tensor; saved: Tensor[] } {
  const lines = linesOf(plan);
  const packed = [q, k, v].map((x) => packRows(lines, x, tiles.stepMultiple));
  const { sums, table } = attend(lines, tiles, { q: packed[0], k: packed[1], v: packed[2] });
  const shape = [plan.batch, plan.time, plan.queryHeads, plan.valueDim];
  const output = unpackRows(sums, table, ROW_TABLE.FACTOR, shape, lines.lineRows, q.dtype);
  return { output, saved: [sums, table, ...packed.flatMap(({ values, exponents }) => [values, exponents])] };
}

const packedOf = ([values, exponents]: readonly Tensor[]): Packed => ({
  values,
  exponents,
  octets: values.shape[1] / OCTET,
});

export function softmaxBackwardOnMatrixUnits(
  plan: SoftmaxPlan,
  tiles: SoftmaxTiles,
  { q, k, v }: SoftmaxInputs,
  [sums, table, ...kept]: readonly Tensor[],
  upstream: Tensor,
): { q: Tensor; k: Tensor; v: Tensor } {
  const lines = linesOf(plan);
  const packed = { q: packedOf(kept), k: packedOf(kept.slice(2)), v: packedOf(kept.slice(4)) };
  const dy = packRows(lines, upstream, tiles.stepMultiple);
  const tables = softmaxLevels(lines, { ...packed, dy }, { sums, table });
  const { queryTable, keyTable } = tables;
  const { dQ, dK, dV } = softmaxGradients(lines, tiles, { ...packed, dy, ...tables });
  const unpack = (sums: Tensor, table: Tensor, quantity: number, x: Tensor) =>
    unpackRows(sums, table, quantity, x.shape, lines.lineRows, x.dtype);
  return {
    q: unpack(dQ, queryTable, QUERY_TABLE.FACTOR, q),
    k: unpack(dK, keyTable, KEY_TABLE.FACTOR, k),
    v: unpack(dV, keyTable, KEY_TABLE.VALUE_FACTOR, v),
  };
}
