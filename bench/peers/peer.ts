/** One sequence of attention inputs as plain numbers, all in the layout [T, H, dim] (gates [T, H]). */
export interface Problem {
  tokens: number;
  heads: number;
  headDim: number;
  q: Float32Array;
  k: Float32Array;
  v: Float32Array;
  /** Natural logs of the gates, 0 or less. */
  logG: Float32Array;
  /** Gradient of the output, for the backward pass. */
  upstream: Float32Array;
}

export interface Gradients {
  q: Float64Array | Float32Array;
  k: Float64Array | Float32Array;
  v: Float64Array | Float32Array;
  logG: Float64Array | Float32Array;
}

/** How a peer is best run for a problem: measured, not guessed (see `Peer.candidates`). */
export interface PeerForm {
  chunkSize: number;
  /** How the monomials of degree 2 are formed; each peer names its own. */
  expansion: string;
}

export type PeerTask = "forward" | "forward-backward" | "softmax-forward" | "softmax-forward-backward";

/**
 * Gated power attention of degree 2 with 'sum' normalisation, and softmax attention, in another framework's operations.
 * `run` returns when the result exists in memory; `result` reads what the last `run` made.
 */
export interface Peer {
  readonly name: string;
  readonly version: string;
  readonly threads: number;
  /** The forms worth measuring. */
  candidates(task: PeerTask): PeerForm[];
  load(problem: Problem): Promise<void>;
  run(task: PeerTask, form: PeerForm): Promise<void>;
  result(): Promise<{ output: Float32Array; gradients?: Gradients }>;
}

/** Head-major copy: [T, H, dim] to [H, T, dim]. */
export function byHead(values: ArrayLike<number>, tokens: number, heads: number): Float32Array {
  const dim = values.length / (tokens * heads);
  const out = new Float32Array(values.length);
  for (let t = 0; t < tokens; t++)
    for (let h = 0; h < heads; h++)
      for (let c = 0; c < dim; c++) out[(h * tokens + t) * dim + c] = values[(t * heads + h) * dim + c];
  return out;
}

/** The inverse of `byHead`: [H, T, dim] to [T, H, dim]. */
export function byToken(values: ArrayLike<number>, tokens: number, heads: number): Float32Array {
  return byHead(values, heads, tokens);
}

/** Standard normal q, k, v and upstream; gates around 0.9 (logSigmoid of a normal plus 2). */
export function makeProblem(tokens: number, heads: number, headDim: number, seed: number): Problem {
  let state = seed >>> 0;
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state + 0.5) / 2 ** 32;
  };
  const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  const normals = (n: number) => Float32Array.from({ length: n }, normal);
  const size = tokens * heads * headDim;
  return {
    tokens,
    heads,
    headDim,
    q: normals(size),
    k: normals(size),
    v: normals(size),
    logG: normals(tokens * heads).map((x) => -Math.log1p(Math.exp(-(x + 2)))),
    upstream: normals(size),
  };
}

/** Per-head results, one after another, as [T, H, dim]. */
export function joinHeads(parts: readonly ArrayLike<number>[], tokens: number): Float32Array {
  const all = new Float32Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return byToken(all, tokens, parts.length);
}

/** The largest difference relative to the largest value of what is wanted. */
export function worstError(got: ArrayLike<number>, wanted: ArrayLike<number>): number {
  if (got.length !== wanted.length) return Number.POSITIVE_INFINITY;
  let largest = 0;
  let worst = 0;
  for (let i = 0; i < wanted.length; i++) {
    worst = Math.max(worst, Math.abs(got[i] - wanted[i])); // NaN once there is one
    largest = Math.max(largest, Math.abs(wanted[i]));
  }
  return worst / largest;
}
