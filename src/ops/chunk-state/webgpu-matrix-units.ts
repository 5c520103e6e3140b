import type { Tensor } from "../../tensor/tensor.js";
import type { SequencePlan } from "../power-attention/contract.js";
import { accumulate } from "../power-attention/matrix-units/accumulate.js";
import { type HalfInputs, orderOf, packKeys, throughFeatures } from "../power-attention/matrix-units/index.js";
import { joinGradient } from "../power-attention/matrix-units/join.js";
import { valueOctets } from "../power-attention/matrix-units/pack.js";
import { readValues } from "../power-attention/matrix-units/read.js";
import { packStates, restoreStates } from "../power-attention/matrix-units/states.js";
import type { PowerTiles } from "../power-attention/matrix-units/tiles.js";
import type { ChunkStates } from "./contract.js";

export type HalfKeys = Omit<HalfInputs, "q">;

/** Fills `into` with the states of half keys and values: powerFull's kernels, and each chunk's sums as they are for a scan. */
export function chunkStateOnMatrixUnits(
  plan: SequencePlan,
  tiles: PowerTiles,
  inputs: HalfKeys,
  into: ChunkStates,
): void {
  const { k, v, levels, valueLargest } = packKeys(plan, tiles, inputs);
  const [order, octets] = orderOf(plan, tiles, inputs.k);
  const { sumAt } = valueOctets(plan.valueDim, tiles);
  const sums = accumulate(plan, tiles, k, v, levels, octets);
  restoreStates(plan, order, { sums, sumAt, summed: levels, side: "keys", valueLargest }, into);
  sums.dispose();
}

/** Contiguous, in the dtypes of k and v; and where gates want them k·dk / degree, f32. */
export interface KeyGradients {
  k: Tensor;
  v: Tensor;
  products: Tensor | undefined;
}

/** Fills `into` from the gradients of states. */
export function chunkStateGradientsOnMatrixUnits(
  plan: SequencePlan,
  tiles: PowerTiles,
  inputs: HalfKeys,
  upstream: ChunkStates,
  into: KeyGradients,
): void {
  const { k, v, levels, valueLargest } = packKeys(plan, tiles, inputs);
  const [order, octets] = orderOf(plan, tiles, inputs.k);
  const states = packStates(plan, order, valueOctets(plan.valueDim, tiles), upstream);
  const shared = { states, keys: levels, x: k, valueLargest };
  const far = throughFeatures(plan, tiles, "keys", k, v, states, valueLargest);
  joinGradient(plan, "k", { ...shared, far }, into.k, into.products);
  joinGradient(plan, "v", { ...shared, far: readValues(plan, tiles, k, states, octets) }, into.v);
}
