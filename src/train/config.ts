import { GPT_DEFAULTS, GPT_SIZES, type GPTConfig, type GPTSize } from "../models/gpt.js";

/** One option of a training run: what it is worth by default, what it means, what it may be. */
export interface OptionSpec {
  default: string | number | boolean;
  help: string;
  /** Of numbers. */
  least?: number;
  most?: number;
  /** Numbers may have a fraction. */
  fraction?: boolean;
  choices?: readonly string[];
}

const model = GPT_DEFAULTS;

/** Every option of `train`, in the order of its help. Numbers of 0 for sizes mean: as `size` says. */
export const TRAIN_OPTIONS = {
  size: { default: "1M", help: "model size by name", choices: Object.keys(GPT_SIZES) },
  nLayer: { default: 0, help: "layers (0: as size says)", least: 0 },
  nEmbd: { default: 0, help: "width of a token (0: as size says)", least: 0 },
  nHead: { default: 0, help: "key/value heads (0: as size says)", least: 0 },
  headSize: { default: 0, help: "features of a head (0: as size says)", least: 0 },
  qheadRatio: { default: model.qheadRatio, help: "query heads for each key/value head", least: 1 },
  attention: { default: model.attention, help: "kind of attention", choices: ["power", "softmax"] },
  degree: { default: model.degree, help: "p of power attention", least: 1 },
  chunkSize: { default: model.chunkSize, help: "tokens in a chunk of power attention (0: chosen by cost)", least: 0 },
  disableGating: { default: model.disableGating, help: "power attention that forgets nothing" },
  positions: { default: model.positions, help: "how tokens know their place", choices: ["rotary", "learned", "none"] },
  norm: { default: model.norm, help: "kind of norm", choices: ["layer", "rms"] },
  mlpRatio: { default: model.mlpRatio, help: "width inside the MLP, in widths of a token", least: 1 },
  bias: { default: model.bias, help: "biases in linear maps and norms" },
  contextLength: { default: model.contextLength, help: "tokens of a training sequence", least: 1 },
  batchSize: { default: 8, help: "sequences at a time", least: 1 },
  accumulate: { default: 1, help: "batches for each update", least: 1 },
  steps: { default: 1000, help: "updates", least: 1 },
  learningRate: { default: 0.002, help: "highest learning rate", least: 0, fraction: true },
  minLearningRate: { default: 0.0002, help: "learning rate at the end", least: 0, fraction: true },
  warmup: { default: 50, help: "updates until the highest learning rate", least: 0 },
  beta1: { default: 0.9, help: "AdamW: memory of the mean", least: 0, most: 1, fraction: true },
  beta2: { default: 0.95, help: "AdamW: memory of the square", least: 0, most: 1, fraction: true },
  epsilon: { default: 1e-8, help: "AdamW: added to the root", least: 0, fraction: true },
  weightDecay: { default: 0.1, help: "decay of matrices, times the learning rate", least: 0, fraction: true },
  clip: { default: 1, help: "largest global norm of the gradients (0: any)", least: 0, fraction: true },
  evalEvery: { default: 100, help: "updates between evaluations (0: only at the end)", least: 0 },
  evalBatches: { default: 8, help: "batches of held-out text in an evaluation", least: 1 },
  saveEvery: { default: 100, help: "updates between checkpoints (0: only at the end)", least: 0 },
  sampleEvery: { default: 500, help: "updates between samples (0: only at the end)", least: 0 },
  sampleTokens: { default: 200, help: "tokens of a sample (0: no samples)", least: 0 },
  recompute: { default: false, help: "recompute activations in the backward pass: less memory, more time" },
  seed: { default: 1, help: "of the initial weights and of the order of the data", least: 0 },
  device: {
    default: "auto",
    help: "where to run (auto: a GPU where there is one, else wasm)",
    choices: ["auto", "wasm", "webgpu", "oracle"],
  },
  threads: { default: 0, help: "CPU threads; asks for wasm (0: all cores, or POWER_ATTENTION_THREADS)", least: 0 },
  dtype: {
    default: "f32",
    help: "of matrices and what they multiply; sums, norms, gradients and updates are f32",
    choices: ["f32", "f16", "bf16"],
  },
} as const satisfies Record<string, OptionSpec>;

type Widen<T> = T extends string ? string : T extends number ? number : boolean;

/** A flat configuration with a value for every option. */
export type TrainConfig = { -readonly [K in keyof typeof TRAIN_OPTIONS]: Widen<(typeof TRAIN_OPTIONS)[K]["default"]> };

/**
 * The defaults with `given` over them.
 * @throws RangeError where an option is unknown or out of range
 */
export function trainConfig(given: Partial<TrainConfig> = {}): TrainConfig {
  const specs: Record<string, OptionSpec> = TRAIN_OPTIONS;
  const config: Record<string, string | number | boolean> = {};
  for (const [name, spec] of Object.entries(specs)) config[name] = spec.default;
  for (const [name, value] of Object.entries(given)) {
    const spec = specs[name];
    if (!spec) {
      throw new RangeError(`train: there is no option ${JSON.stringify(name)}; see power-attention train --help`);
    }
    if (value === undefined) continue;
    checkOption(name, spec, value);
    config[name] = value;
  }
  return config as TrainConfig;
}

function checkOption(name: string, spec: OptionSpec, value: string | number | boolean): void {
  const say = (rule: string) => new RangeError(`train: ${name} must be ${rule}, got ${JSON.stringify(value)}`);
  if (typeof spec.default === "boolean" && typeof value !== "boolean") throw say("true or false");
  if (spec.choices && !spec.choices.includes(value as string)) throw say(`one of ${spec.choices.join(", ")}`);
  if (typeof spec.default !== "number") return;
  const { least = Number.NEGATIVE_INFINITY, most = Number.POSITIVE_INFINITY, fraction } = spec;
  const inside = typeof value === "number" && value >= least && value <= most && Number.isFinite(value);
  if (!inside || !(fraction || Number.isInteger(value))) {
    const range = most < Number.POSITIVE_INFINITY ? `from ${least} to ${most}` : `of ${least} or more`;
    throw say(`${fraction ? "a number" : "an integer"} ${range}`);
  }
}

/** The model that a configuration describes, for a vocabulary. */
export function modelConfig(config: TrainConfig, vocabSize: number): GPTConfig {
  const size = GPT_SIZES[config.size as GPTSize];
  const { qheadRatio, contextLength, mlpRatio, degree, chunkSize, disableGating, bias } = config;
  const nEmbd = config.nEmbd || size.nEmbd;
  const headSize = config.headSize || size.headSize;
  const nHead = config.nHead || Math.max(1, Math.floor(nEmbd / (headSize * qheadRatio)));
  return {
    vocabSize,
    contextLength,
    nLayer: config.nLayer || size.nLayer,
    nEmbd,
    nHead,
    qheadRatio,
    headSize,
    attention: config.attention as GPTConfig["attention"],
    degree,
    chunkSize,
    disableGating,
    positions: config.positions as GPTConfig["positions"],
    norm: config.norm as GPTConfig["norm"],
    mlpRatio,
    bias,
  };
}
