import type { Tensor } from "../../tensor/tensor.js";
import type { ChunkStates } from "../chunk-state/contract.js";
import type { State } from "../power-attention/contract.js";

export interface ScanPlan {
  readonly batch: number;
  /** Tokens; only logG's shape and the ragged last chunk need it. 0 where not gated. */
  readonly time: number;
  readonly heads: number;
  readonly expandedDim: number;
  readonly valueDim: number;
  readonly chunkSize: number;
  readonly chunks: number;
  readonly gated: boolean;
  readonly hasInitialState: boolean;
}

/**
 * The recurrence over chunks:
 *     entering[0] = initialState or 0      entering[c + 1] = exp(G_end of c) · entering[c] + states[c]
 * The final state is entering[N].
 */
export interface StateScanInputs {
  /** Contiguous f32: s [B, N, H, D, e], z [B, N, H, D]. */
  states: ChunkStates;
  /** [B, T, H] f32, contiguous; present where plan.gated. */
  logG?: Tensor;
  initialState?: State;
}

export interface StateScanResult {
  /** Shapes of `states`; f32. */
  entering: ChunkStates;
  /** s [B, H, D, e], z [B, H, D]; f32. */
  finalState: State;
}

export type StateScanForward = (plan: ScanPlan, inputs: StateScanInputs) => StateScanResult;

/** Upstream parts are contiguous f32; absent means zero. `entering` is the forward's, saved. */
export type StateScanBackward = (
  plan: ScanPlan,
  inputs: { logG?: Tensor; entering: ChunkStates },
  upstream: { entering: { s?: Tensor; z?: Tensor }; finalState: { s?: Tensor; z?: Tensor } },
) => { states: ChunkStates; logG?: Tensor; initialState?: State };
