import type { Device } from "../devices/device.js";
import {
  type AttentionCache,
  Block,
  Embedding,
  LayerNorm,
  Module,
  normalParameter,
  RMSNorm,
  RotaryEmbedding,
  recompute,
} from "../nn/index.js";
import { linearCrossEntropy, linearCrossEntropyRows } from "../ops/cross-entropy/index.js";
import { linear } from "../ops/linear/index.js";
import type { DType } from "../tensor/dtype.js";
import type { Generator } from "../tensor/random.js";
import { fromValues, type Tensor } from "../tensor/tensor.js";
import { RecordedTokens } from "./recorded-tokens.js";

/** Everything that makes a GPT, flat. */
export interface GPTConfig {
  vocabSize: number;
  /** Tokens it is trained on at a time. With learned positions it reads no further. */
  contextLength: number;
  nLayer: number;
  nEmbd: number;
  /** Key/value heads. */
  nHead: number;
  /** Query heads for each key/value head. */
  qheadRatio: number;
  headSize: number;
  attention: "power" | "softmax";
  /** p of power attention. */
  degree: number;
  /** Tokens in a chunk of power attention; 0: chosen by cost. */
  chunkSize: number;
  disableGating: boolean;
  positions: "rotary" | "learned" | "none";
  norm: "layer" | "rms";
  /** Width inside the MLP as a multiple of nEmbd. */
  mlpRatio: number;
  bias: boolean;
}

const shape = (nLayer: number, nEmbd: number, headSize: number) => ({
  nLayer,
  nEmbd,
  headSize,
  nHead: nEmbd / headSize,
});

/** Sizes by name, by their number of parameters: of the blocks alone, but for "124M", GPT-2's smallest. */
export const GPT_SIZES = {
  tiny: shape(2, 64, 16),
  "1M": shape(5, 128, 32),
  "5M": shape(6, 256, 32),
  "20M": shape(8, 448, 32),
  "124M": shape(12, 768, 64),
} as const satisfies Record<string, Partial<GPTConfig>>;

export type GPTSize = keyof typeof GPT_SIZES;

export const GPT_DEFAULTS: Omit<GPTConfig, "vocabSize" | "nLayer" | "nEmbd" | "nHead" | "headSize"> = {
  contextLength: 256,
  qheadRatio: 1,
  attention: "power",
  degree: 2,
  chunkSize: 0,
  disableGating: false,
  positions: "rotary",
  norm: "layer",
  mlpRatio: 4,
  bias: false,
};

/** A configuration of a named size, with whatever differs. */
export function gptConfig(size: GPTSize, rest: Partial<GPTConfig> & { vocabSize: number }): GPTConfig {
  if (!(size in GPT_SIZES)) {
    throw new RangeError(
      `gptConfig: size must be one of ${Object.keys(GPT_SIZES).join(", ")}, got ${JSON.stringify(size)}`,
    );
  }
  return { ...GPT_DEFAULTS, ...GPT_SIZES[size], ...rest };
}

/** @throws RangeError naming the field that is out of range */
export function checkGPTConfig(config: GPTConfig): void {
  const whole: [keyof GPTConfig, number][] = [
    ["vocabSize", 1],
    ["contextLength", 1],
    ["nLayer", 1],
    ["nEmbd", 1],
    ["nHead", 1],
    ["qheadRatio", 1],
    ["headSize", 1],
    ["degree", 1],
    ["chunkSize", 0],
    ["mlpRatio", 1],
  ];
  for (const [name, least] of whole) {
    const value = config[name] as number;
    if (!Number.isInteger(value) || value < least) {
      throw new RangeError(`GPT: ${name} must be an integer of at least ${least}, got ${JSON.stringify(value)}`);
    }
  }
  const choices = { attention: ["power", "softmax"], positions: ["rotary", "learned", "none"], norm: ["layer", "rms"] };
  for (const [name, allowed] of Object.entries(choices)) {
    const value = config[name as keyof GPTConfig] as string;
    if (!allowed.includes(value)) {
      throw new RangeError(`GPT: ${name} must be one of ${allowed.join(", ")}, got ${JSON.stringify(value)}`);
    }
  }
  if (config.positions === "rotary" && config.headSize % 2 !== 0) {
    throw new RangeError(
      `GPT: rotary positions need an even headSize, got ${config.headSize}; use positions "learned"`,
    );
  }
}

export interface GPTOptions {
  device: Device;
  /** Of matrices, and of what is multiplied by them; default "f32". All else is f32. */
  dtype?: DType;
  /** Source of the initial weights; default: the shared one. */
  generator?: Generator;
}

/** What a GPT carries from token to token while it writes: one cache a layer. */
export type GPTCache = AttentionCache[];

/**
 * A decoder-only transformer: embedding, blocks of attention and MLP, a norm, and logits by the embedding's own table.
 * ids are i32 [B, T].
 */
export class GPT extends Module {
  readonly tokens: Embedding;
  readonly positions: Tensor | undefined;
  readonly rotary: RotaryEmbedding | undefined;
  readonly blocks: Block[];
  readonly norm: LayerNorm | RMSNorm;
  readonly #recorded = new RecordedTokens();

  /** @throws RangeError where the configuration makes no sense */
  constructor(
    readonly config: Readonly<GPTConfig>,
    readonly options: GPTOptions,
  ) {
    super();
    checkGPTConfig(config);
    const { vocabSize, contextLength, nLayer, nEmbd, headSize, positions, norm, bias, chunkSize } = config;
    this.tokens = new Embedding(vocabSize, nEmbd, options);
    this.positions =
      positions === "learned" ? normalParameter([contextLength, nEmbd], 0.02, { ...options, dtype: "f32" }) : undefined;
    this.rotary = positions === "rotary" ? new RotaryEmbedding(headSize, options.device) : undefined;
    // Each block adds twice to the residual stream; its share at the start is scaled so that the sum is not.
    const outDeviation = 0.02 / Math.sqrt(2 * nLayer);
    const block = { ...config, chunkSize: chunkSize === 0 ? undefined : chunkSize, outDeviation };
    this.blocks = Array.from({ length: nLayer }, () => new Block(block, options, this.rotary));
    this.norm = norm === "rms" ? new RMSNorm(nEmbd, options) : new LayerNorm(nEmbd, { ...options, bias });
  }

  /** ids [B, T] to the last hidden states [B, T, nEmbd]. */
  hidden(ids: Tensor, { caches, recompute: again = false }: { caches?: GPTCache; recompute?: boolean } = {}): Tensor {
    const start = caches?.[0].tokens ?? 0;
    this.rotary?.angles(start, ids.shape[1]);
    let x = this.tokens.forward(ids, "f32");
    if (this.positions) {
      const end = start + ids.shape[1];
      if (end > this.config.contextLength) {
        throw new RangeError(
          `GPT: learned positions end at contextLength ${this.config.contextLength}, got ${end} tokens; train with positions "rotary"`,
        );
      }
      x = x.add(this.positions.slice(0, start, end));
    }
    for (const [n, block] of this.blocks.entries()) {
      x = again && !caches ? recompute((t) => block.forward(t), x) : block.forward(x, caches?.[n]);
    }
    return this.norm.forward(x);
  }

  /** ids [B, T] to logits [B, T, vocabSize], f32; with `last` only those of the last token, [B, 1, vocabSize]. */
  forward(ids: Tensor, { caches, last = false }: { caches?: GPTCache; last?: boolean } = {}): Tensor {
    // Learned positions are others for each token.
    const again =
      caches && !this.positions
        ? this.#recorded.next(ids, caches, this.rotary, (own) => this.#logits(own, caches, last))
        : undefined;
    return again ?? this.#logits(ids, caches, last);
  }

  #logits(ids: Tensor, caches: GPTCache | undefined, last: boolean): Tensor {
    const h = this.hidden(ids, { caches });
    return linear(last ? h.slice(1, -1) : h, this.tokens.weight, undefined, { dtype: "f32" });
  }

  /** Mean cross-entropy of the next tokens, in nats: ids and targets i32 [B, T]; targets of −1 do not count. */
  loss(ids: Tensor, targets: Tensor, options: { recompute?: boolean; count?: number } = {}): Tensor {
    return linearCrossEntropy(this.hidden(ids, options), this.tokens.weight, targets, { count: options.count });
  }

  /** The loss of each token, [B, T], without gradients. */
  tokenLosses(ids: Tensor, targets: Tensor): Tensor {
    return linearCrossEntropyRows(this.hidden(ids), this.tokens.weight, targets);
  }

  /**
   * Token ids, or targets of which −1 do not count, as an i32 tensor of the model's device.
   * @throws RangeError where one is no token of the model: here on the host, where looking costs nothing
   */
  ids(values: ArrayLike<number>, shape: readonly number[]): Tensor {
    const { vocabSize } = this.config;
    for (let k = 0; k < values.length; k++) {
      if (values[k] >= -1 && values[k] < vocabSize) continue;
      throw new RangeError(
        `GPT.ids: token ids must be from 0 to ${vocabSize - 1} (targets also -1), got ${values[k]} at ${k}; use the model's tokenizer`,
      );
    }
    return fromValues(this.options.device, values, shape, "i32");
  }

  caches(batch: number): GPTCache {
    return this.blocks.map((block) => block.attention.cache(batch));
  }
}
