import type { NormBefore } from "../ops/linear/contract.js";
import { linear } from "../ops/linear/index.js";
import { normLinear } from "../ops/linear/norm-linear.js";
import { softmaxAttention } from "../ops/softmax-attention/index.js";
import { powerFull } from "../power-attention.js";
import { PowerState } from "../state.js";
import type { Tensor } from "../tensor/tensor.js";
import { Linear } from "./linear.js";
import { Module } from "./module.js";
import { constantParameter, type ModuleOptions, normalParameter } from "./options.js";
import type { RotaryEmbedding } from "./rotary.js";
import { SoftmaxCache } from "./softmax-cache.js";

/** sigmoid(6.9) = 0.999: at the start a gate keeps half of what it has for 700 tokens. */
export const GATE_BIAS = 6.9;

export interface AttentionConfig {
  /** Width of the tokens. */
  nEmbd: number;
  /** Key/value heads. */
  nHead: number;
  /** Query heads for each of them; default 1. */
  qheadRatio?: number;
  /** Features of a head; default nEmbd / (nHead · qheadRatio). */
  headSize?: number;
  /** "power" (default), or "softmax" to compare. */
  attention?: "power" | "softmax";
  /** Of power attention; default 2. */
  degree?: number;
  /** Of power attention: tokens in a chunk, null for the quadratic form, undefined for whichever costs less. */
  chunkSize?: number | null;
  /** Power attention without gates: nothing is forgotten. Default false. */
  disableGating?: boolean;
  /** Biases of the two projections; default false. The gate always has one. */
  bias?: boolean;
  /** Standard deviation of the output projection at the start; default 0.02. */
  outDeviation?: number;
}

/** The log of a sigmoid, in f32. */
const GATE = { activation: "logSigmoid", dtype: "f32" } as const;

/** Queries, keys and values of all heads side by side, queries and keys turned by their positions. */
function placed(all: Tensor, heads: readonly number[], place: (t: Tensor) => Tensor): Tensor[] {
  const [q, k, v] = all.split(heads, 2);
  return [place(q), place(k), v];
}

/** The same in one turn, which pays while writing: its gradient would be one more copy. */
function placedTogether(all: Tensor, [q, k, v]: readonly number[], place: (t: Tensor) => Tensor): Tensor[] {
  const [turned, values] = all.split([q + k, v], 2);
  return [...place(turned).split([q, k], 2), values];
}

/** What attention carries from token to token while it writes. */
export type AttentionCache = PowerState | SoftmaxCache;

/**
 * Causal self-attention over [B, T, nEmbd]. One projection makes queries, keys and values, which attention reads in
 * place, as views; another makes gates. logG = logSigmoid(gate + gateBias), in f32, is the log of the share that a token keeps of what was
 * before it.
 */
export class CausalSelfAttention extends Module {
  readonly project: Linear;
  /** Apart from the projection, whose rows stay where vectors can begin. */
  readonly gate: Tensor | undefined;
  readonly out: Linear;
  readonly gateBias: Tensor | undefined;
  readonly config: Required<Omit<AttentionConfig, "chunkSize" | "outDeviation">> & { chunkSize?: number | null };

  /** @param positions turns queries and keys by their position; without it attention does not see distance */
  constructor(
    config: AttentionConfig,
    options: ModuleOptions,
    private readonly positions?: RotaryEmbedding,
  ) {
    super();
    const { nEmbd, nHead, qheadRatio = 1, bias = false, attention = "power", degree = 2, outDeviation } = config;
    const { headSize = nEmbd / (nHead * qheadRatio), disableGating = false, chunkSize } = config;
    for (const [name, value] of Object.entries({ nEmbd, nHead, qheadRatio, headSize })) {
      if (!Number.isInteger(value) || value < 1) {
        throw new RangeError(`CausalSelfAttention: ${name} must be a positive integer, got ${value}; set headSize too`);
      }
    }
    if (attention !== "power" && attention !== "softmax") {
      throw new RangeError(
        `CausalSelfAttention: attention must be "power" or "softmax", got ${JSON.stringify(attention)}`,
      );
    }
    this.config = { nEmbd, nHead, qheadRatio, headSize, attention, degree, chunkSize, disableGating, bias };
    this.project = new Linear(nEmbd, (qheadRatio + 2) * nHead * headSize, { ...options, bias });
    this.gate = this.gated ? normalParameter([nHead, nEmbd], 0.02, options) : undefined;
    this.gateBias = this.gated ? constantParameter([nHead], GATE_BIAS, options) : undefined;
    this.out = new Linear(qheadRatio * nHead * headSize, nEmbd, { ...options, bias, deviation: outDeviation });
  }

  get gated(): boolean {
    return this.config.attention === "power" && !this.config.disableGating;
  }

  /**
   * @param x [B, T, nEmbd]
   * @param cache what came before x, and where x's keys and values go; without it x is the whole sequence
   * @param residual [B, T, nEmbd], added to the result
   */
  forward(x: Tensor, cache?: AttentionCache, residual?: Tensor): Tensor {
    const logG = this.gate && linear(x, this.gate, this.gateBias, GATE);
    return this.#attend(this.project.forward(x), logG, cache, residual);
  }

  /** x + forward(norm(x), cache), without gradients: while writing. */
  write(x: Tensor, norm: NormBefore, cache: AttentionCache): Tensor {
    const gates = this.gate ? [{ weight: this.gate, bias: this.gateBias, ...GATE }] : [];
    const [projected, logG] = normLinear(x, norm, this.project, ...gates);
    return this.#attend(projected, logG, cache, x);
  }

  #attend(projected: Tensor, logG: Tensor | undefined, cache?: AttentionCache, residual?: Tensor): Tensor {
    const [batch, time] = projected.shape;
    const { nHead, qheadRatio, headSize, attention, degree, chunkSize } = this.config;
    const width = nHead * headSize;
    const all = projected.reshape([batch, time, (qheadRatio + 2) * nHead, headSize]);
    const start = cache?.tokens ?? 0;
    const place = (t: Tensor) => this.positions?.apply(t, start) ?? t;
    const heads = [qheadRatio * nHead, nHead, nHead];
    let y: Tensor;
    if (cache instanceof SoftmaxCache) {
      const [q, k, v] = placedTogether(all, heads, place);
      y = cache.step(q, k, v);
    } else if (cache) {
      const [q, k, v] = all.split(heads, 2);
      y = cache.step(q, k, v, { logG, angles: this.positions?.angles(start, time).both });
    } else {
      const [q, k, v] = placed(all, heads, place);
      y = attention === "softmax" ? softmaxAttention(q, k, v) : powerFull(q, k, v, { logG, degree, chunkSize });
    }
    return this.out.forward(y.reshape([batch, time, qheadRatio * width]), residual);
  }

  /** An empty cache for `forward`. */
  cache(batch: number): AttentionCache {
    const { nHead, headSize, attention, degree } = this.config;
    const { device } = this.project.weight;
    if (attention === "softmax") return new SoftmaxCache();
    return PowerState.empty({ batch, kvHeads: nHead, headDim: headSize, valueDim: headSize, degree, device });
  }
}
