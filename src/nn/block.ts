import type { Tensor } from "../tensor/tensor.js";
import { type AttentionCache, type AttentionConfig, CausalSelfAttention } from "./attention.js";
import { MLP } from "./mlp.js";
import { Module } from "./module.js";
import { LayerNorm, RMSNorm } from "./norm.js";
import type { ModuleOptions } from "./options.js";
import type { RotaryEmbedding } from "./rotary.js";

export interface BlockConfig extends AttentionConfig {
  /** Default "layer". */
  norm?: "layer" | "rms";
  /** Width inside the MLP as a multiple of nEmbd; default 4. */
  mlpRatio?: number;
}

/** x + attention(norm(x)), then x + mlp(norm(x)). x, the residual stream, keeps its dtype. */
export class Block extends Module {
  readonly norm1: LayerNorm | RMSNorm;
  readonly attention: CausalSelfAttention;
  readonly norm2: LayerNorm | RMSNorm;
  readonly mlp: MLP;

  constructor(config: BlockConfig, options: ModuleOptions, positions?: RotaryEmbedding) {
    super();
    const { nEmbd, norm = "layer", mlpRatio = 4, bias = false, outDeviation } = config;
    const makeNorm = () => (norm === "rms" ? new RMSNorm(nEmbd, options) : new LayerNorm(nEmbd, { ...options, bias }));
    this.norm1 = makeNorm();
    this.attention = new CausalSelfAttention(config, options, positions);
    this.norm2 = makeNorm();
    this.mlp = new MLP(nEmbd, { ...options, hidden: mlpRatio * nEmbd, bias, outDeviation });
  }

  forward(x: Tensor, cache?: AttentionCache): Tensor {
    if (cache) {
      const attended = this.attention.write(x, this.norm1.before, cache);
      return this.mlp.afterNorm(attended, this.norm2.before, attended);
    }
    const before = this.norm1.passing(x);
    const between = this.norm2.passing(this.attention.forward(before.output, undefined, before.passed));
    return this.mlp.forward(between.output, between.passed);
  }
}
