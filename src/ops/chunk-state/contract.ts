import type { Tensor } from "../../tensor/tensor.js";
import type { SequencePlan } from "../power-attention/contract.js";

/**
 * What each chunk alone adds to the state, with G counted from the chunk's start and G_end its last value:
 *     s[c] = Σ_j exp(G_end − G_j) φ(k_j) v_jᵀ      z[c] = Σ_j exp(G_end − G_j) φ(k_j)
 * queryHeads and scale of the plan play no part.
 */
export interface ChunkStateInputs {
  /** [B, T, H, d], innermost axis contiguous; any float dtype, v's. */
  k: Tensor;
  /** [B, T, H, e], likewise. */
  v: Tensor;
  /** [B, T, H] f32, contiguous; present where plan.gated. */
  logG?: Tensor;
}

/** One state for each chunk, f32, contiguous. */
export interface ChunkStates {
  /** [B, N, H, D, e] */
  s: Tensor;
  /** [B, N, H, D] */
  z: Tensor;
}

export type ChunkStateForward = (plan: SequencePlan, inputs: ChunkStateInputs) => ChunkStates;

/** Upstream parts are contiguous f32; absent means zero. */
export type ChunkStateBackward = (
  plan: SequencePlan,
  inputs: ChunkStateInputs,
  upstream: { s?: Tensor; z?: Tensor },
) => { k: Tensor; v: Tensor; logG?: Tensor };
