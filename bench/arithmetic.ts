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

/** The same two counts for the quadratic form: every token against all before it and itself. */
export function quadraticOperations(shape: Omit<Shape, "chunkSize">, backward: boolean): number {
  const { batch, tokens, queryHeads, headDim, valueDim } = shape;
  const forward = 2 * (headDim + valueDim);
  const inside = backward ? forward + 2 * (3 * headDim + 2 * valueDim) : forward;
  return (batch * tokens * queryHeads * inside * (tokens + 1)) / 2;
}

/**
 * Bytes that a call must move, with inputs and outputs of `width` bytes a value, f32 gates and f32 states: forward, its
 * inputs and its output once, and each chunk's state (none in the quadratic form: `chunkSize` null) written and read
 * once; backward, those inputs, the output and its gradient once more, the inputs' gradients, the states read again and
 * their gradients written and read.
 */
export function powerBytes(
  shape: Omit<Shape, "chunkSize"> & { chunkSize: number | null },
  width: number,
  backward: boolean,
): number {
  const { batch, tokens, queryHeads, heads, headDim, valueDim, degree, chunkSize } = shape;
  const inputs = width * (queryHeads * headDim + heads * (headDim + valueDim)) + 4 * heads;
  const output = width * queryHeads * valueDim;
  const chunks = chunkSize === null ? 0 : Math.ceil(tokens / chunkSize);
  const states = 4 * batch * chunks * heads * expandedDim(headDim, degree) * (valueDim + 1);
  const forward = batch * tokens * (inputs + output) + 2 * states;
  return forward + (backward ? batch * tokens * (2 * inputs + 2 * output) + 3 * states : 0);
}
