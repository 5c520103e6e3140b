import type { WasmDevice } from "../src/devices/wasm/device.js";
import { type Device, expandedDim, Generator, Scope } from "../src/index.js";
import { GPT, type GPTConfig, gptConfig } from "../src/models/index.js";
import { AdamW } from "../src/nn/index.js";
import { backwardOperations, forwardOperations } from "./arithmetic.js";
import type { Question } from "./context.js";
import { interleave } from "./measure.js";
import { peakProbe } from "./probe.js";
import { rate, shareOfPeak } from "./share-of-peak.js";

const BATCH = 1;

export function trainingConfig(quick: boolean): GPTConfig {
  const size = { nLayer: 4, nEmbd: 256, headSize: 64, nHead: 4, vocabSize: 256 };
  return gptConfig("tiny", { ...size, contextLength: quick ? 512 : 1024, chunkSize: 256 });
}

/** Multiply-adds counted as two: each matrix three times (forward, two gradients), and attention by its own count. */
export function stepOperations(config: GPTConfig, batch: number): number {
  const { nLayer, nEmbd, nHead, qheadRatio, headSize, mlpRatio, vocabSize, contextLength, degree } = config;
  const queries = nHead * qheadRatio * headSize;
  const project = nEmbd * ((qheadRatio + 2) * nHead * headSize + nHead);
  const matrices = nLayer * (project + queries * nEmbd + 2 * mlpRatio * nEmbd ** 2) + vocabSize * nEmbd;
  const shape = {
    ...{ batch, tokens: contextLength, queryHeads: nHead * qheadRatio, heads: nHead },
    ...{ headDim: headSize, valueDim: headSize, degree, chunkSize: config.chunkSize || contextLength },
  };
  // Those counts take a state for every chunk; of N chunks the first reads none and the last feeds none.
  const heads = 3 * shape.queryHeads + 4 * shape.heads;
  const spare = batch * shape.chunkSize * heads * 2 * expandedDim(headSize, degree) * headSize;
  const attention = nLayer * (forwardOperations(shape) + backwardOperations(shape) - spare);
  return 6 * matrices * batch * contextLength + attention;
}

/** One step: forward, backward, global norm and AdamW. Reads the loss, as training does. */
export function trainingStep(device: Device, config: GPTConfig, batch: number): () => Promise<undefined> {
  const generator = new Generator(1);
  const model = new GPT(config, { device, generator });
  const rates = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1 };
  const optimizer = new AdamW(model.parameters(), rates);
  const { contextLength, vocabSize } = config;
  const text = Int32Array.from({ length: batch * contextLength + 1 }, () => generator.integer(vocabSize));
  const shape = [batch, contextLength];
  return async () => {
    using _ = new Scope();
    const loss = model.loss(model.ids(text.subarray(0, -1), shape), model.ids(text.subarray(1), shape));
    loss.backward();
    optimizer.update(1e-4, optimizer.squaredNorm());
    model.clearGrad();
    await loss.item();
    return undefined;
  };
}

export const trainingStepQuestion: Question = {
  name: "training-step",
  question: "How near the multiply-add peak is a training step? (4 layers, n=256, 4 heads of 64, p=2, T=1,024, AdamW)",
  target: "50 % of the peak; memory flat",
  async run(context) {
    const [single, many] = [await context.device(1), await context.device(context.threads)];
    const config = trainingConfig(context.quick);
    const probe = peakProbe(single as WasmDevice);
    const step = trainingStep(many, config, BATCH);
    const times = await interleave(
      { probe: probe.run, one: trainingStep(single, config, BATCH), many: step },
      context.rounds,
    );
    const used: number[] = [];
    for (let k = 0; k < (context.quick ? 3 : 10); k++) {
      await step();
      used.push(many.memory().used);
    }
    const operations = stepOperations(config, BATCH);
    const tokens = BATCH * config.contextLength;
    return {
      figures: [
        {
          name: "share of peak, one thread",
          value: shareOfPeak(operations, times.one, probe.operations, times.probe),
          ...{ unit: "%", atLeast: 50, spread: times.one.spread },
        },
        { name: "one thread", value: rate(operations, times.one.median), unit: "GFLOP/s" },
        { name: "peak", value: rate(probe.operations, times.probe.fastest), unit: "GFLOP/s" },
        { name: "tokens/s, one thread", value: (1000 * tokens) / times.one.median, unit: "" },
        { name: `tokens/s, ${context.threads} threads`, value: (1000 * tokens) / times.many.median, unit: "" },
        {
          name: "bytes that a step leaves behind",
          value: Math.max(...used) - Math.min(...used),
          ...{ unit: "", atMost: 0, correctness: true },
        },
      ],
      notes: { layers: config.nLayer, width: config.nEmbd, tokens, chunkSize: config.chunkSize, probe: probe.form },
    };
  },
};
