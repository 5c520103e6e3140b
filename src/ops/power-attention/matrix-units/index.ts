import { webgpuDevice } from "../../../devices/webgpu/device.js";
import { fromValues, type Tensor } from "../../../tensor/tensor.js";
import { largestOfChunks } from "../../chunk-state/webgpu-largest.js";
import type { SequencePlan, State } from "../contract.js";
import { accumulate } from "./accumulate.js";
import { type FeatureOrder, featureOrder } from "./features.js";
import { finish, type Output } from "./finish.js";
import { type Levels, levels } from "./levels.js";
import { type Packed, packRows, packValues } from "./pack.js";
import { pairs } from "./pairs.js";
import { read } from "./read.js";
import { type ChunkStates, scanStates } from "./scan.js";
import { type PowerTiles, powerTiles } from "./tiles.js";

/** Half inputs of a call, or of a part of one, and its gates as gateSums gives them. */
export interface HalfInputs {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  gates: Tensor;
}

/** The tiles for a call, or undefined where it is one for the portable kernels. */
export function tilesFor(plan: SequencePlan, x: Tensor): PowerTiles | undefined {
  const { gpu, matrixUnits, tuned } = webgpuDevice(x);
  if (x.dtype === "f32" || plan.degree < 1 || plan.degree > 4 || plan.scale === 0) return undefined;
  return powerTiles(matrixUnits, gpu.limits, tuned);
}

/** φ's order for a plan, and its table of octets on the device. */
function orderOf({ headDim, degree }: SequencePlan, tiles: PowerTiles, like: Tensor): [FeatureOrder, Tensor] {
  const { groups } = tiles.accumulate;
  const order = featureOrder(headDim, degree, groups);
  const octets = webgpuDevice(like).constant(`octets ${headDim} ${degree} ${groups}`, () =>
    fromValues(like.device, order.octets, [order.octets.length], "i32"),
  );
  return [order, octets];
}

/** Bytes that the states of one chunk take, sums and what enters. */
export function chunkStateBytes(plan: SequencePlan, tiles: PowerTiles): number {
  const { features } = featureOrder(plan.headDim, plan.degree, tiles.accumulate.groups);
  return 6 * plan.heads * features * (plan.valueDim + tiles.columnMultiple);
}

interface PackedKeys {
  k: Packed;
  v: Packed;
  valueLargest: Tensor;
  levels: Levels;
}

function packKeys(plan: SequencePlan, tiles: PowerTiles, { k, v, gates }: HalfInputs): PackedKeys {
  const packed = packRows(plan, k, tiles.stepMultiple);
  const valueLargest = largestOfChunks(plan, v);
  return {
    k: packed,
    v: packValues(plan, v, valueLargest, tiles.columnMultiple),
    valueLargest,
    levels: levels(plan, "keys", packed.exponents, gates),
  };
}

/** The states that enter each chunk, and the one that leaves the last where it is wanted. */
function enteringStates(
  plan: SequencePlan,
  tiles: PowerTiles,
  keys: PackedKeys,
  first: Partial<State> | undefined,
  wantLast: boolean,
): ChunkStates & { octets: Tensor } {
  const [order, octets] = orderOf(plan, tiles, keys.k.values);
  const sums = accumulate(plan, tiles, keys.k, keys.v, keys.levels, octets);
  const states = scanStates(plan, order, {
    ...{ sums, keys: keys.levels, summed: keys.levels, side: "keys" },
    ...{ valueLargest: keys.valueLargest, sumLargest: undefined, first, wantLast },
  });
  sums.dispose();
  return { ...states, octets };
}

/** Fills `result`, and returns the state that leaves where `wantLast`. */
export function forwardOnMatrixUnits(
  plan: SequencePlan,
  tiles: PowerTiles,
  inputs: HalfInputs,
  divide: boolean,
  result: Output,
  first: Partial<State> | undefined,
  wantLast: boolean,
): State | undefined {
  const keys = packKeys(plan, tiles, inputs);
  const q = packRows(plan, inputs.q, tiles.stepMultiple);
  const near = pairs(plan, tiles, q, keys.k, keys.v, keys.levels);
  const firstChunk = first ? 0 : 1;
  const reads = plan.chunks > firstChunk;
  const states = reads || wantLast ? enteringStates(plan, tiles, keys, first, wantLast) : undefined;
  const far =
    reads && states
      ? { read: read(plan, tiles, q, states.s, states.octets, firstChunk), states, firstChunk }
      : undefined;
  finish(plan, divide, near, far, q, keys.levels, keys.valueLargest, result);
  return states?.last;
}
