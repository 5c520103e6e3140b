import type { Tensor } from "../../tensor/tensor.js";
import type { Unnormalised } from "../chunk-attention/contract.js";
import type { ChunkStates } from "../chunk-state/contract.js";
import type { SequencePlan } from "../power-attention/contract.js";
import { accumulate } from "../power-attention/matrix-units/accumulate.js";
import { balanced } from "../power-attention/matrix-units/balance.js";
import { finish } from "../power-attention/matrix-units/finish.js";
import { orderOf, throughFeatures } from "../power-attention/matrix-units/index.js";
import { joinGradient } from "../power-attention/matrix-units/join.js";
import { levels, levelsOfGates } from "../power-attention/matrix-units/levels.js";
import { packGradients, packRows, summedInBlocks, valueOctets } from "../power-attention/matrix-units/pack.js";
import { read } from "../power-attention/matrix-units/read.js";
import { packStates, restoreStates } from "../power-attention/matrix-units/states.js";
import type { PowerTiles } from "../power-attention/matrix-units/tiles.js";
import { absent } from "../power-attention/webgpu-gates.js";

/** Half queries, states in f32, and gates as gateSums gives them. */
export interface HalfQueries {
  q: Tensor;
  states: ChunkStates;
  gates: Tensor;
}

/** Fills `into` with what half queries read from given states: powerFull's kernels, and states as a scan would leave them. */
export function queryStateOnMatrixUnits(
  plan: SequencePlan,
  tiles: PowerTiles,
  { q: x, states: given, gates }: HalfQueries,
  into: Unnormalised,
): void {
  const q = packRows(plan, x, tiles.stepMultiple);
  const [order, octets] = orderOf(plan, tiles, x);
  const columns = valueOctets(plan.valueDim, tiles);
  const states = packStates(plan, order, columns, given);
  const far = { read: read(plan, tiles, q, states, octets), states };
  const result = { y: into.output, rowSum: into.sum };
  finish(plan, false, undefined, far, q, levelsOfGates(plan, gates), absent(x), columns.sumAt, result);
}

/** Contiguous: in the dtype of q; f32 of the states; and where gates want them q·dq / degree, f32. */
export interface QueryGradients {
  q: Tensor;
  states: ChunkStates;
  products: Tensor | undefined;
}

/** Fills `into` from the gradients of y and of its sums of weights. */
export function queryStateGradientsOnMatrixUnits(
  plan: SequencePlan,
  tiles: PowerTiles,
  { q: x, states: given, gates }: HalfQueries,
  upstream: { dy: Tensor; dsum: Tensor },
  into: QueryGradients,
): void {
  const q = packRows(plan, x, tiles.stepMultiple, summedInBlocks(plan));
  const [order, octets] = orderOf(plan, tiles, x);
  const columns = valueOctets(plan.valueDim, tiles);
  const { sumAt } = columns;
  const valueLargest = balanced(plan, undefined, upstream.dy, upstream.dsum);
  const dy = packGradients(plan, upstream, valueLargest, tiles);

  const states = packStates(plan, order, columns, given);
  const far = throughFeatures(plan, tiles, "queries", q, dy, states, valueLargest);
  const shared = { states, keys: levelsOfGates(plan, gates), x: q, dy, valueLargest };
  joinGradient(plan, "q", { ...shared, far }, into.q, into.products);

  const summed = levels(plan, q, gates, dy);
  const sums = accumulate(plan, tiles, q, dy, summed, octets);
  restoreStates(plan, order, { sums, sumAt, summed, side: "queries", valueLargest }, into.states);
  sums.dispose();
}
