import { existsSync } from "node:fs";
import { join } from "node:path";
import { TokenFile } from "../../src/data/index.js";
import { evaluate } from "../../src/eval/index.js";
import { loadGPT } from "../../src/models/index.js";
import { findCheckpoint, readMetrics, type TrainConfig, train } from "../../src/train/index.js";
import { deviceAt, type Job, type Place, slug } from "./experiment.js";

/** The attentions that experiments on text compare, at the same width. */
export const KINDS = {
  softmax: { attention: "softmax" },
  "power p=2, gated": { degree: 2 },
  "power p=2, ungated": { degree: 2, disableGating: true },
  // Heads of 16: the state of p=4 has 3,876 rows a head then, and 52,360 with heads of 32.
  "power p=4, gated, small heads": { degree: 4, headSize: 16 },
  "power p=1, gated": { degree: 1 },
} as const satisfies Record<string, Partial<TrainConfig>>;

export type Kind = keyof typeof KINDS;

/** Half a million parameters: small enough that the five claims take an afternoon on two cores. */
const MODEL = { nLayer: 4, nEmbd: 96, headSize: 32 };
const TOKENS_PER_STEP = 2048;
const STEPS = 600;
/** Held-out tokens that a trained model is judged by. */
const JUDGED = 2 ** 17;
/** Models of this context are also read past it. */
export const SHORT = 256;
export const PAST = 4;

export interface TextRun {
  /** Held-out loss while it trained: [tokens, nats per token]. */
  curve: [number, number][];
  /** Held-out loss at the end, nats per token. */
  loss: number;
  /** The same by position: [last position of the span, loss of the span]. */
  spans: [number, number][];
  /** By position to PAST times the context it was trained with. */
  past?: [number, number][];
}

export interface TextRunSettings {
  kind: Kind;
  contextLength: number;
  positions?: "rotary" | "none";
  seed: number;
  steps?: number;
}

/** Trains one model on text and judges it. Experiments that want the same model share the run. */
export function textRun({
  kind,
  contextLength,
  positions = "rotary",
  seed,
  steps = STEPS,
}: TextRunSettings): Job<TextRun> {
  const config = {
    ...{ ...MODEL, ...KINDS[kind] },
    ...{ contextLength, batchSize: TOKENS_PER_STEP / contextLength, positions, seed, steps },
    ...{ learningRate: 0.004, minLearningRate: 0.0004, evalEvery: Math.ceil(steps / 8), evalBatches: 4 },
    ...{ saveEvery: 200, sampleTokens: 0 },
  };
  return {
    name: `text-${slug(kind)}-context-${contextLength}-${positions}-steps-${steps}-seed-${seed}`,
    settings: {
      kind,
      contextLength,
      positions,
      seed,
      steps,
      tokensPerStep: TOKENS_PER_STEP,
      tokens: steps * TOKENS_PER_STEP,
      ...MODEL,
      ...KINDS[kind],
    },
    run: (place) => trained(place, config),
  };
}

async function trained(place: Place, config: Partial<TrainConfig>): Promise<{ value: TextRun; device: string }> {
  const { data, folder, device: kind, threads, progress } = place;
  const resume = existsSync(join(folder, "checkpoints", "index.json"));
  let device = "";
  await train({
    ...{ data, out: folder, resume },
    config: resume ? {} : { ...config, device: kind, threads },
    onStart: (start) => {
      device = start.device;
      if (start.step > 0) progress(`goes on from step ${start.step}`);
    },
    onMetric: (metric) => {
      if (metric.kind === "eval") progress(`step ${metric.step}: held-out loss ${metric.loss.toFixed(4)}`);
    },
  });
  const curve = readMetrics(join(folder, "metrics.jsonl")).filter((m) => m.kind === "eval");
  const own = await deviceAt(place);
  const { model } = await loadGPT(findCheckpoint(folder), { device: own });
  using file = TokenFile.open(join(data, "val.bin"));
  const judged = async (contextLength: number) => {
    const batchSize = Math.max(1, 4096 / contextLength);
    const batches = Math.max(1, JUDGED / (batchSize * contextLength));
    return evaluate(model, file, { contextLength, batchSize, batches });
  };
  const { contextLength } = model.config;
  const { loss, byPosition } = await judged(contextLength);
  const past = contextLength === SHORT ? spansOf((await judged(PAST * SHORT)).byPosition) : undefined;
  model.dispose();
  if (threads > 0) own.dispose();
  return { value: { curve: curve.map((m) => [m.tokens, m.loss]), loss, spans: spansOf(byPosition), past }, device };
}

/** Means over spans of positions, each ending at a power of two: [end, mean]. */
export function spansOf(byPosition: Float64Array): [number, number][] {
  const spans: [number, number][] = [];
  for (let from = 0; from < byPosition.length; ) {
    const to = Math.min(byPosition.length, Math.max(16, 2 * from));
    spans.push([to, byPosition.subarray(from, to).reduce((a, b) => a + b, 0) / (to - from)]);
    from = to;
  }
  return spans;
}
