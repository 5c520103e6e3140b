/**
 * Gates as products of exp(logG), never as exp of a difference of sums: logG = −Infinity then gives a factor of 0, and
 * no −Infinity + Infinity.
 */
export interface GateDims {
  readonly time: number;
  readonly heads: number;
  readonly chunkSize: number;
}

/** Where token t of a batch entry and head is in a [B, T, H] array. */
export function gateAt(dims: GateDims, b: number, t: number, h: number): number {
  return (b * dims.time + t) * dims.heads + h;
}

/** exp(logG), or undefined where there are no gates. */
export function gatesOf(logG: Float64Array | undefined): Float64Array | undefined {
  return logG?.map(Math.exp);
}

/** First token and end of a chunk; the last may be ragged. */
export function chunkRange(dims: GateDims, chunk: number): [start: number, end: number] {
  return [chunk * dims.chunkSize, Math.min((chunk + 1) * dims.chunkSize, dims.time)];
}

/** exp(G_end − G_j) for the tokens of a chunk: the product of the gates after j. */
export function decayToEnd(
  dims: GateDims,
  gates: Float64Array | undefined,
  b: number,
  h: number,
  [start, end]: [number, number],
): Float64Array {
  const decay = new Float64Array(end - start).fill(1);
  if (gates) {
    for (let j = end - 2; j >= start; j--) decay[j - start] = decay[j + 1 - start] * gates[gateAt(dims, b, j + 1, h)];
  }
  return decay;
}

/** exp(G_i) for the tokens of a chunk, with G counted from its start: the product of the gates up to and with i. */
export function decayFromStart(
  dims: GateDims,
  gates: Float64Array | undefined,
  b: number,
  h: number,
  [start, end]: [number, number],
): Float64Array {
  const decay = new Float64Array(end - start).fill(1);
  if (gates) {
    for (let i = start; i < end; i++) {
      decay[i - start] = (i > start ? decay[i - 1 - start] : 1) * gates[gateAt(dims, b, i, h)];
    }
  }
  return decay;
}
