import { webgpuDevice } from "../../../devices/webgpu/device.js";
import { fromValues, type Tensor } from "../../../tensor/tensor.js";
import { largestOfChunks } from "../../chunk-state/webgpu-largest.js";
import type { SequencePlan, State } from "../contract.js";
import { type Part, partsOf } from "../webgpu-parts.js";
import { accumulate } from "./accumulate.js";
import { featureGradient } from "./feature-gradient.js";
import { type FeatureOrder, featureOrder, OCTET } from "./features.js";
import { finish, type Output } from "./finish.js";
import { joinGradient } from "./join.js";
import { type Levels, laterLevels, levels } from "./levels.js";
import {
  type Packed,
  packGradients,
  packRows,
  packValues,
  type RowGradients,
  summedInBlocks,
  valueOctets,
} from "./pack.js";
import { pairs } from "./pairs.js";
import { pairsGradients } from "./pairs-gradients.js";
import { read, readValues } from "./read.js";
import { type ChunkStates, isReached, reachedChunks, scanStates, unreadSums } from "./scan.js";
import { squareGradient } from "./square-gradient.js";
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
  const { degree, scale } = plan;
  const plain = degree >= 1 && degree <= 4 && (scale > 0 || (scale < 0 && degree % 2 === 0));
  return x.dtype === "f32" || !plain ? undefined : powerTiles(matrixUnits, gpu.limits, plan, tuned);
}

/** φ's order for a plan, and its table of octets on the device. */
export function orderOf({ headDim, degree }: SequencePlan, tiles: PowerTiles, like: Tensor): [FeatureOrder, Tensor] {
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
  return 6 * plan.heads * features * OCTET * valueOctets(plan.valueDim, tiles).stride;
}

/**
 * The parts in which chunk states that are given or asked for are taken, none more than a kernel sees of a buffer; and the
 * tiles where half inputs go on matrix units.
 */
export function statesInParts(plan: SequencePlan, x: Tensor): { tiles: PowerTiles | undefined; parts: Part[] } {
  const { heads, expandedDim, valueDim } = plan;
  const tiles = plan.time > 0 ? tilesFor(plan, x) : undefined;
  const bytes = tiles ? chunkStateBytes(plan, tiles) : 0;
  // States are padded on matrix units: a chunk's may be more than a kernel sees where the portable kernels' are not.
  if (tiles && bytes <= webgpuDevice(x).gpu.limits.maxStorageBufferBindingSize) {
    return { tiles, parts: partsOf(plan, bytes, x) };
  }
  return { tiles: undefined, parts: partsOf(plan, 4 * heads * expandedDim * valueDim, x) };
}

export interface PackedKeys {
  k: Packed;
  v: Packed;
  valueLargest: Tensor;
  levels: Levels;
}

/**
 * `valueLargest`, or more: whatever values and what arrives at their sums are to be divided by. `inBlocks`: keys by blocks, too, for
 * features.
 */
export function packKeys(
  plan: SequencePlan,
  tiles: PowerTiles,
  { k, v, gates }: Omit<HalfInputs, "q">,
  valueLargest = largestOfChunks(plan, v),
  inBlocks = summedInBlocks(plan),
): PackedKeys {
  const packed = packRows(plan, k, tiles.stepMultiple, inBlocks);
  return {
    k: packed,
    v: packValues(plan, v, valueLargest, tiles),
    valueLargest,
    levels: levels(plan, packed, gates),
  };
}

interface Directed {
  side: "keys" | "queries";
  /** What features are made of, what they are summed with, and how the tokens weigh. */
  x: Packed;
  y: Packed;
  levels: Levels;
  first: Partial<State> | undefined;
  wantLast: boolean;
}

/** States that enter chunks, from keys and values; or that arrive at them from later chunks, from queries and gradients. */
function chunkStates(plan: SequencePlan, tiles: PowerTiles, keys: PackedKeys, directed: Directed): ChunkStates {
  const { side, x, y, levels: summed, first, wantLast } = directed;
  const [order, octets] = orderOf(plan, tiles, x.values);
  const sums = accumulate(plan, tiles, x, y, summed, octets, unreadSums(plan, side, wantLast));
  const { sumAt } = valueOctets(plan.valueDim, tiles);
  const { levels: keyLevels, valueLargest } = keys;
  const states = scanStates(plan, order, { sums, keys: keyLevels, summed, side, valueLargest, sumAt, first, wantLast });
  sums.dispose();
  return states;
}

const enteringStates = (
  plan: SequencePlan,
  tiles: PowerTiles,
  keys: PackedKeys,
  first: Partial<State> | undefined,
  wantLast: boolean,
) => chunkStates(plan, tiles, keys, { side: "keys", x: keys.k, y: keys.v, levels: keys.levels, first, wantLast });

/** What the gradient of packed x is made of that reads states (queries, y = dy) or makes them (keys, y = v). */
export function throughFeatures(
  plan: SequencePlan,
  tiles: PowerTiles,
  side: "queries" | "keys",
  x: Packed,
  y: Packed,
  states: ChunkStates,
  valueLargest: Tensor,
): Tensor {
  const { sumAt } = valueOctets(plan.valueDim, tiles);
  if (plan.degree === 2) return squareGradient(plan, tiles, side, x, y, states, sumAt, valueLargest);
  const [, octets] = orderOf(plan, tiles, x.values);
  return featureGradient(plan, tiles, side, x, y, states, octets, sumAt, valueLargest);
}

/** What a forward makes that its backward would make again. */
interface Kept {
  q: Packed;
  keys: PackedKeys;
  entering: ChunkStates | undefined;
}

/** What was kept, as tensors in a row, and back. `given`: a state entered the first chunk. */
export function keptTensors({ q, keys, entering }: Kept): Tensor[] {
  const { k, v, valueLargest, levels } = keys;
  const packed = [q, k, v].flatMap(({ values, exponents }) => [values, exponents]);
  const blocks = [q.blocks, k.blocks].filter((x) => x !== undefined);
  const states = entering ? [entering.s, entering.z, entering.factors] : [];
  return [...packed, valueLargest, levels.tokens, levels.largest, ...blocks, ...states];
}

export function keptOf(tensors: readonly Tensor[], plan: SequencePlan, given: boolean): Kept | undefined {
  if (tensors.length === 0) return undefined;
  const [q, k, v] = [0, 2, 4].map((at) => {
    const [values, exponents] = tensors.slice(at);
    const packed: Packed = { values, exponents, octets: values.shape[1] / OCTET };
    return packed;
  });
  const [valueLargest, tokens, largest, ...more] = tensors.slice(6);
  if (summedInBlocks(plan)) for (const x of [q, k]) x.blocks = more.shift();
  const [s, z, factors] = more;
  const keys = { k, v, valueLargest, levels: { tokens, largest } };
  return { q, keys, entering: s && { s, z, factors, reached: reachedChunks(plan, "keys", given), last: undefined } };
}

/** Fills `result`; returns the state that leaves where `wantLast`, and what the backward can use again. */
export function forwardOnMatrixUnits(
  plan: SequencePlan,
  tiles: PowerTiles,
  inputs: HalfInputs,
  divide: boolean,
  result: Output,
  first: Partial<State> | undefined,
  wantLast: boolean,
): { last: State | undefined; kept: Kept } {
  const keys = packKeys(plan, tiles, inputs);
  const q = packRows(plan, inputs.q, tiles.stepMultiple, summedInBlocks(plan));
  const near = pairs(plan, tiles, q, keys.k, keys.v, keys.levels);
  const reads = isReached(reachedChunks(plan, "keys", first !== undefined));
  const states = reads || wantLast ? enteringStates(plan, tiles, keys, first, wantLast) : undefined;
  const [, octets] = orderOf(plan, tiles, q.values);
  const far = reads && states ? { read: read(plan, tiles, q, states, octets), states } : undefined;
  const { sumAt } = valueOctets(plan.valueDim, tiles);
  finish(plan, divide, near, far, q, keys.levels, keys.valueLargest, sumAt, result);
  return { last: states?.last, kept: { q, keys, entering: far?.states } };
}

/** The state alone that leaves the last chunk. */
export function leavingState(
  plan: SequencePlan,
  tiles: PowerTiles,
  inputs: HalfInputs,
  first: Partial<State> | undefined,
): State {
  return enteringStates(plan, tiles, packKeys(plan, tiles, inputs), first, true).last as State;
}

export interface HalfUpstream {
  gradients: RowGradients;
  /** What entered the first chunk, and the gradient of what left the last. */
  first: Partial<State> | undefined;
  dLast: Partial<State> | undefined;
}

/** Contiguous, in the dtypes of what they are gradients of; and where gates want them, q·dq / degree and k·dk / degree, f32. */
export interface HalfGradients {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  products?: { q: Tensor | undefined; k: Tensor };
}

/** Fills gradients of q, k and v; returns that of the state that entered where `wantFirst`. */
export function backwardOnMatrixUnits(
  plan: SequencePlan,
  tiles: PowerTiles,
  inputs: HalfInputs,
  { gradients, first, dLast }: HalfUpstream,
  into: HalfGradients,
  wantFirst: boolean,
  kept: Kept | undefined,
): State | undefined {
  const { sumAt } = valueOctets(plan.valueDim, tiles);
  const [, octets] = orderOf(plan, tiles, inputs.q);
  const keys = kept?.keys ?? packKeys(plan, tiles, inputs);
  const { k, v, valueLargest } = keys;
  const q = kept?.q ?? packRows(plan, inputs.q, tiles.stepMultiple, summedInBlocks(plan));
  const dy = packGradients(plan, gradients, valueLargest, tiles);
  const queryLevels = levels(plan, q, inputs.gates, dy);
  const later = laterLevels(plan, queryLevels);
  const near = pairsGradients(plan, tiles, { q, k, v, dy, sumAt, keys: keys.levels, queries: queryLevels, later });

  const reads = isReached(reachedChunks(plan, "keys", first !== undefined));
  const entering = reads ? (kept?.entering ?? enteringStates(plan, tiles, keys, first, false)) : undefined;
  const farQ = entering && throughFeatures(plan, tiles, "queries", q, dy, entering, valueLargest);
  const arrives = isReached(reachedChunks(plan, "queries", dLast !== undefined));
  const arriving =
    arrives || wantFirst
      ? chunkStates(plan, tiles, keys, {
          ...{ side: "queries", x: q, y: dy, levels: queryLevels, first: dLast, wantLast: wantFirst },
        })
      : undefined;
  const farK = arriving && throughFeatures(plan, tiles, "keys", k, v, arriving, valueLargest);
  const farV = arriving && readValues(plan, tiles, k, arriving, octets);

  const shared = { keys: keys.levels, later, dy, valueLargest };
  const parts = {
    q: { ...shared, near: near.dQ, flow: near.qFlow, far: farQ, states: entering, x: q },
    k: { ...shared, near: near.dK, flow: near.kFlow, far: farK, states: arriving, x: k },
  };
  for (const what of ["q", "k"] as const) joinGradient(plan, what, parts[what], into[what], into.products?.[what]);
  joinGradient(plan, "v", { ...shared, near: near.dV, far: farV, states: arriving, x: k }, into.v);
  return arriving?.last;
}
