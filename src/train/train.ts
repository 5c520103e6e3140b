import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { loadTokenizer, TokenFile, type Tokenizer, writeFileWhole } from "../data/index.js";
import { checkVocabulary, evaluate } from "../eval/evaluate.js";
import { generateText } from "../generate/generate.js";
import { GPT } from "../models/gpt.js";
import { loadTensors } from "../models/weight-files.js";
import { AdamW } from "../nn/adamw.js";
import type { DType } from "../tensor/dtype.js";
import { Generator } from "../tensor/random.js";
import { Checkpoints, findCheckpoint, loadTraining, type TrainState } from "./checkpoint.js";
import { modelConfig, type TrainConfig } from "./config.js";
import { deviceFor } from "./device.js";
import { checkProgress } from "./divergence.js";
import { type Metric, MetricsFile } from "./metrics.js";
import { reportHtml } from "./report.js";
import { planRun } from "./run-file.js";
import { learningRateAt } from "./schedule.js";
import { type Batch, type StepResult, trainStep } from "./step.js";
import { WindowOrder } from "./window-order.js";

export interface TrainOptions {
  /** The folder that `prepare` wrote: train.bin and val.bin. A resumed run knows it. */
  data?: string;
  /** The run folder. */
  out: string;
  /** What differs from the defaults. */
  config?: Partial<TrainConfig>;
  /** Go on from the last checkpoint of `out`; `config` may then only raise `steps`. Default false. */
  resume?: boolean;
  /** Called with everything that is measured. */
  onMetric?: (metric: Metric) => void;
  onStart?: (start: TrainStart) => void;
  /** Aborted: the step in progress is finished and saved. */
  signal?: AbortSignal;
}

export interface TrainStart {
  device: string;
  parameters: number;
  steps: number;
  /** Updates done before. */
  step: number;
  tokensPerStep: number;
  trainTokens: number;
}

export interface TrainResult {
  /** Updates done, those before a resume included. */
  step: number;
  stopped: "finished" | "aborted";
  /** Nats per token at the last evaluation, if there was one. */
  heldOutLoss: number | null;
  bestLoss: number | null;
  checkpoint: string;
  report: string;
  seconds: number;
}

/**
 * Trains a GPT on prepared text. The run folder gets config.json, metrics.jsonl, report.html and checkpoints. A resumed
 * run gives the same numbers, bit for bit, as one that was never stopped (same device and threads).
 *
 * @throws RangeError, TypeError where an option is out of range; Error where files are missing or damaged;
 *   DivergedError where the loss is not a number or runs away
 */
export async function train(options: TrainOptions): Promise<TrainResult> {
  const { out, onMetric, onStart, signal, resume = false } = options;
  const run = planRun(options);
  const config = run.train;
  using trainFile = TokenFile.open(join(run.data, "train.bin"));
  using valFile = TokenFile.open(join(run.data, "val.bin"));
  const { batchSize, accumulate, contextLength, seed, steps } = config;
  const windows = new WindowOrder(trainFile.length, contextLength + 1, seed);
  const tokenizer = await loadTokenizer(trainFile.info.tokenizer);
  const device = await deviceFor(config);
  const modelShape = modelConfig(config, tokenizer.vocabSize);
  const generator = new Generator(seed);
  const model = new GPT(modelShape, { device, dtype: config.dtype as DType, generator });
  for (const file of [trainFile, valFile]) checkVocabulary("train", model, file);
  const optimizer = new AdamW(model.parameters(), config);
  const random = new Generator(seed + 1);
  let state: TrainState = {
    version: 1,
    step: 0,
    position: 0,
    random: random.state,
    meanLoss: null,
    bestLoss: null,
    overflows: 0,
  };
  if (resume) {
    const last = findCheckpoint(out);
    loadTensors(join(last, "model.safetensors"), model.parameters());
    state = loadTraining(last, optimizer);
    random.state = state.random;
  }
  mkdirSync(out, { recursive: true });
  writeFileWhole(join(out, "config.json"), `${JSON.stringify({ ...run, model: modelShape }, undefined, 2)}\n`);
  const checkpoints = new Checkpoints(out);
  const metrics = new MetricsFile(join(out, "metrics.jsonl"), state.step);
  const tokensPerStep = batchSize * accumulate * contextLength;
  onStart?.({
    device: device.description,
    parameters: model.parameterCount,
    steps,
    step: state.step,
    tokensPerStep,
    trainTokens: trainFile.length,
  });

  const add = (metric: Metric) => {
    metrics.add(metric);
    onMetric?.(metric);
  };
  const reportPath = join(out, "report.html");
  const report = (running: boolean) => {
    const summary = [
      `${model.parameterCount.toLocaleString("en")} parameters, ${modelShape.attention} attention, on ${device.description}.`,
      `${state.step} of ${steps} updates, ${(state.step * tokensPerStep).toLocaleString("en")} tokens of ${tokenizer.spec.kind}.`,
      ...(state.bestLoss === null ? [] : [`Lowest held-out loss ${state.bestLoss.toFixed(4)} nats per token.`]),
    ];
    const page = { title: `Training ${out}`, summary, config: { ...config, model: modelShape }, metrics: metrics.all };
    writeFileWhole(reportPath, reportHtml({ ...page, running }));
  };
  let heldOutLoss: number | null = null;
  let checkpoint = resume ? findCheckpoint(out) : "";
  const save = async (best: boolean) => {
    checkpoint = await checkpoints.save(model, tokenizer.spec, optimizer, { ...state, random: random.state }, best);
  };

  const began = performance.now();
  let aborted = signal?.aborted ?? false;
  /** Updates issued and not yet settled, the oldest first. */
  const pending: { result: Promise<StepResult>; learningRate: number }[] = [];
  // On a GPU the next update is queued before this one's loss is read: it never runs dry.
  const ahead = device.readNow ? 0 : 1;
  const due = (step: number, every: number) => step === steps || (every > 0 && step % every === 0);
  const interrupts = (step: number) =>
    due(step, config.evalEvery) ||
    due(step, config.saveEvery) ||
    (config.sampleTokens > 0 && due(step, config.sampleEvery));
  const issue = () => {
    const done = state.step + pending.length;
    const learningRate = learningRateAt(done, {
      ...{ peak: config.learningRate, floor: config.minLearningRate },
      ...{ warmup: config.warmup, steps },
    });
    const batches = Array.from({ length: accumulate }, (_, part) =>
      batch(
        trainFile,
        windows,
        state.position + (pending.length * accumulate + part) * batchSize,
        batchSize,
        contextLength,
      ),
    );
    const result = trainStep(model, optimizer, batches, {
      learningRate,
      recompute: config.recompute,
      dtype: config.dtype as DType,
    });
    result.catch(() => {}); // it is awaited later, or not at all after another failure
    pending.push({ result, learningRate });
  };
  try {
    let start = performance.now();
    while (pending.length > 0 || (state.step < steps && !aborted)) {
      while (!aborted && pending.length <= ahead && state.step + pending.length < steps) {
        if (pending.length > 0 && interrupts(state.step + pending.length)) break;
        issue();
      }
      const { result, learningRate } = pending.shift()!;
      const { loss, gradientNorm } = await result;
      try {
        checkProgress(state, loss, gradientNorm, learningRate, checkpoint, config.dtype === "f16");
      } catch (error) {
        report(false);
        throw error;
      }
      const step = state.step + 1;
      const meanLoss = state.meanLoss === null ? loss : 0.95 * state.meanLoss + 0.05 * loss;
      const overflows = Number.isFinite(gradientNorm) ? 0 : state.overflows + 1;
      state = { ...state, step, position: state.position + batchSize * accumulate, meanLoss, overflows };
      const tokens = step * tokensPerStep;
      const tokensPerSecond = (1000 * tokensPerStep) / (performance.now() - start);
      const memory = device.memory().reserved;
      add({ kind: "step", step, tokens, loss, learningRate, gradientNorm, tokensPerSecond, memory });
      start = performance.now();

      aborted = signal?.aborted ?? false;
      if (pending.length > 0) continue;
      const last = step === steps;
      let best = false;
      if (due(step, config.evalEvery)) {
        heldOutLoss = (await evaluate(model, valFile, { contextLength, batchSize, batches: config.evalBatches })).loss;
        best = state.bestLoss === null || heldOutLoss < state.bestLoss;
        if (best) state = { ...state, bestLoss: heldOutLoss };
        add({ kind: "eval", step, tokens, loss: heldOutLoss });
      }
      if (config.sampleTokens > 0 && due(step, config.sampleEvery)) {
        const text = await sample(model, tokenizer, config.sampleTokens, random);
        add({ kind: "sample", step, tokens, text });
      }
      if (best || aborted || due(step, config.saveEvery)) await save(best);
      if (due(step, config.evalEvery) || aborted) report(!last && !aborted);
      // Timers and signals get their turn: a step on the CPU does not wait for anything.
      await new Promise((resolve) => setImmediate(resolve));
      aborted ||= signal?.aborted ?? false;
      start = performance.now();
    }
    if (aborted && !existsSync(join(out, "checkpoints", stepName(state.step)))) await save(false);
    report(false);
  } finally {
    optimizer.dispose();
    model.dispose();
    if (config.threads > 0) device.dispose(); // made for this run; without a number of threads it is everybody's
  }
  return {
    step: state.step,
    stopped: state.step >= steps ? "finished" : "aborted",
    heldOutLoss,
    bestLoss: state.bestLoss,
    checkpoint,
    report: reportPath,
    seconds: (performance.now() - began) / 1000,
  };
}

const stepName = (step: number) => `step-${String(step).padStart(8, "0")}`;

function batch(file: TokenFile, windows: WindowOrder, position: number, rows: number, length: number): Batch {
  const inputs = new Int32Array(rows * length);
  const targets = new Int32Array(rows * length);
  for (let r = 0; r < rows; r++) {
    const ids = file.read(windows.start(position + r), length + 1);
    inputs.set(ids.subarray(0, length), r * length);
    targets.set(ids.subarray(1), r * length);
  }
  return { inputs, targets, shape: [rows, length] };
}

async function sample(model: GPT, tokenizer: Tokenizer, maxTokens: number, random: Generator): Promise<string> {
  const { text } = await generateText(model, tokenizer, { maxTokens, seed: random, temperature: 0.8 });
  return text;
}
