import type { Tensor } from "../../tensor/tensor.js";
import type { Unnormalised } from "../chunk-attention/contract.js";
import type { ChunkStates } from "../chunk-state/contract.js";
import type { SequencePlan } from "../power-attention/contract.js";

/**
 * What each query reads from the state that enters its chunk, with G_i counted from the chunk's start:
 *     output_i = scale^p · exp(G_i) · φ(q_i)ᵀ s[c]      sum_i = scale^p · exp(G_i) · φ(q_i)·z[c]
 */
export interface QueryStateInputs {
  /** [B, T, Hq, d], innermost axis contiguous. */
  q: Tensor;
  /** Entering states, contiguous f32: s [B, N, H, D, e], z [B, N, H, D]. */
  states: ChunkStates;
  /** [B, T, H] f32, contiguous; present where plan.gated. */
  logG?: Tensor;
}

export type QueryStateForward = (plan: SequencePlan, inputs: QueryStateInputs) => Unnormalised;

/** Upstream parts are contiguous f32; absent means zero. */
export type QueryStateBackward = (
  plan: SequencePlan,
  inputs: QueryStateInputs,
  upstream: { output?: Tensor; sum?: Tensor },
) => { q: Tensor; states: ChunkStates; logG?: Tensor };
