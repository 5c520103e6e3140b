import { expandedDim } from "../src/index.js";

export interface Shape {
  batch: number;
  tokens: number;
  queryHeads: number;
  heads: number;
  headDim: number;
  valueDim: number;
  degree: number;
  chunkSize: number;
}

/**
 * Floating-point operations of the chunked form, a multiply-add counted as two: only the products that any
 * implementation must make. Exponentials, making φ, key sums and normalisation are left out, so a share of the peak
 * computed from this is what the multiply-adds alone reach. A token sees (C + 1)/2 tokens of its chunk on average.
 * The first chunk reads no state and the last one feeds none; with many chunks that is not worth a term.
 */
export function forwardOperations(shape: Shape): number {
  const { batch, tokens, queryHeads, heads, headDim, valueDim, degree, chunkSize } = shape;
  const state = 2 * expandedDim(headDim, degree) * valueDim;
  const pairs = (Math.min(chunkSize, tokens) + 1) / 2;
  const inside = pairs * 2 * (headDim + valueDim);
  return batch * tokens * (queryHeads * (state + inside) + heads * state);
}

/** φ(k)ᵀv of all tokens: the chunk states alone. */
export function chunkStateOperations(shape: Shape): number {
  const { batch, tokens, heads, headDim, valueDim, degree } = shape;
  return batch * tokens * heads * 2 * expandedDim(headDim, degree) * valueDim;
}

/**
 * The backward pass alone. Per query head: d(φ(q)) = S·dy and its part of d(S) = φ(q)·dyᵀ. Per key/value head: the
 * states once more, dv = dSᵀ·φ(k) and d(φ(k)) = dS·v. Inside the chunk: s = q·k and dw = dy·v again, then dv, dq and dk.
 */
export function backwardOperations(shape: Shape): number {
  const { batch, tokens, queryHeads, heads, headDim, valueDim, degree, chunkSize } = shape;
  const state = 2 * expandedDim(headDim, degree) * valueDim;
  const pairs = (Math.min(chunkSize, tokens) + 1) / 2;
  const inside = pairs * 2 * (3 * headDim + 2 * valueDim);
  return batch * tokens * (queryHeads * (2 * state + inside) + heads * 3 * state);
}
