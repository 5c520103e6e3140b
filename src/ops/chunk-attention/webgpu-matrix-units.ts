import { empty, type Tensor } from "../../tensor/tensor.js";
import type { SequencePlan } from "../power-attention/contract.js";
import { balanced } from "../power-attention/matrix-units/balance.js";
import { finish } from "../power-attention/matrix-units/finish.js";
import { type HalfGradients, type HalfInputs, packKeys } from "../power-attention/matrix-units/index.js";
import { joinGradient } from "../power-attention/matrix-units/join.js";
import { laterLevels, levels } from "../power-attention/matrix-units/levels.js";
import { packGradients, packRows, valueOctets } from "../power-attention/matrix-units/pack.js";
import { pairs } from "../power-attention/matrix-units/pairs.js";
import { pairsGradients } from "../power-attention/matrix-units/pairs-gradients.js";
import type { PowerTiles } from "../power-attention/matrix-units/tiles.js";
import type { Unnormalised } from "./contract.js";

/** The quadratic form inside chunks of half inputs: powerFull's kernels without its states. */
export function chunkAttentionOnMatrixUnits(plan: SequencePlan, tiles: PowerTiles, inputs: HalfInputs): Unnormalised {
  const { batch, time, queryHeads, valueDim } = plan;
  const { device } = inputs.q;
  const keys = packKeys(plan, tiles, inputs, undefined, false);
  const q = packRows(plan, inputs.q, tiles.stepMultiple);
  const near = pairs(plan, tiles, q, keys.k, keys.v, keys.levels);
  const y = empty([batch, time, queryHeads, valueDim], device, "f32");
  const rowSum = empty([batch, time, queryHeads], device, "f32");
  const { sumAt } = valueOctets(valueDim, tiles);
  finish(plan, false, near, undefined, q, keys.levels, keys.valueLargest, sumAt, { y, rowSum });
  return { output: y, sum: rowSum };
}

export function chunkAttentionGradientsOnMatrixUnits(
  plan: SequencePlan,
  tiles: PowerTiles,
  inputs: HalfInputs,
  dy: Tensor,
  dsum: Tensor,
): HalfGradients {
  const like = (x: Tensor) => empty(x.shape, x.device, x.dtype);
  const products = (x: Tensor) => (plan.gated ? empty(x.shape.slice(0, 3), x.device, "f32") : undefined);
  const { sumAt } = valueOctets(plan.valueDim, tiles);
  const keys = packKeys(plan, tiles, inputs, balanced(plan, inputs.v, dy, dsum), false);
  const { k, v, valueLargest } = keys;
  const q = packRows(plan, inputs.q, tiles.stepMultiple);
  const packedDy = packGradients(plan, { dy, dsum }, valueLargest, tiles);
  const queries = levels(plan, q, inputs.gates, packedDy);
  const later = laterLevels(plan, queries);
  const near = pairsGradients(plan, tiles, { q, k, v, dy: packedDy, sumAt, keys: keys.levels, queries, later });
  const shared = { states: undefined, keys: keys.levels, later, dy: packedDy, valueLargest };
  const [dQ, dK, dV] = [inputs.q, inputs.k, inputs.v].map(like);
  const [fromQ, fromK] = [inputs.q, inputs.k].map(products);
  joinGradient(plan, "q", { ...shared, near: near.dQ, flow: near.qFlow, x: q }, dQ, fromQ);
  joinGradient(plan, "k", { ...shared, near: near.dK, flow: near.kFlow, x: k }, dK, fromK);
  joinGradient(plan, "v", { ...shared, near: near.dV, x: k }, dV);
  return { q: dQ, k: dK, v: dV, products: fromK && { q: fromQ, k: fromK } };
}
