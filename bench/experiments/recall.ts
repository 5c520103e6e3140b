import { type Device, Generator, getDevice, noGrad, Scope } from "../../src/index.js";
import { GPT, type GPTConfig, gptConfig } from "../../src/models/index.js";
import { AdamW } from "../../src/nn/index.js";
import { learningRateAt } from "../../src/train/index.js";
import type { Experiment } from "./experiment.js";

const KEYS = 128;
const VALUES = 64;
const PAIRS = [4, 8, 16, 32, 64];
const BATCH = 32;

const MODELS: Record<string, Partial<GPTConfig>> = {
  softmax: { attention: "softmax" },
  "p=1": { degree: 1 },
  "p=2": { degree: 2 },
  "p=4": { degree: 4 },
};

/**
 * Sequences of `pairs` keys with a value each, then all keys again in another order, each to be followed by its value.
 * Targets are -1 but where a value must be recalled.
 */
function sequences(pairs: number, generator: Generator): { ids: Int32Array; targets: Int32Array; length: number } {
  const length = 4 * pairs;
  const ids = new Int32Array(BATCH * length);
  const targets = new Int32Array(BATCH * length).fill(-1);
  const shuffled = (n: number) => {
    const list = Array.from({ length: n }, (_, k) => k);
    for (let k = n - 1; k > 0; k--) {
      const other = generator.integer(k + 1);
      [list[k], list[other]] = [list[other], list[k]];
    }
    return list;
  };
  for (let b = 0; b < BATCH; b++) {
    const keys = shuffled(KEYS).slice(0, pairs);
    const values = keys.map(() => KEYS + generator.integer(VALUES));
    const order = shuffled(pairs);
    for (let k = 0; k < pairs; k++) {
      const [first, again] = [b * length + 2 * k, b * length + 2 * (pairs + k)];
      ids.set([keys[k], values[k]], first);
      ids.set([keys[order[k]], values[order[k]]], again);
      targets[again] = values[order[k]];
    }
  }
  return { ids, targets, length };
}

async function accuracy(model: GPT, pairs: number): Promise<number> {
  const generator = new Generator(999);
  let right = 0;
  let asked = 0;
  for (let round = 0; round < 4; round++) {
    using _ = new Scope();
    const { ids, targets, length } = sequences(pairs, generator);
    const logits = await noGrad(() => model.forward(model.ids(ids, [BATCH, length]))).data();
    const classes = KEYS + VALUES;
    for (let row = 0; row < targets.length; row++) {
      if (targets[row] < 0) continue;
      const scores = logits.subarray(row * classes, (row + 1) * classes);
      let best = 0;
      for (let c = 1; c < classes; c++) if (scores[c] > scores[best]) best = c;
      asked++;
      if (best === targets[row]) right++;
    }
  }
  return right / asked;
}

async function learn(device: Device, rest: Partial<GPTConfig>, pairs: number, steps: number, seed: number) {
  const generator = new Generator(seed);
  // Small heads, so that the states differ where it counts: 16, 136 and 3,876 rows.
  const sizes = { nLayer: 2, nEmbd: 64, nHead: 2, headSize: 16, contextLength: 4 * pairs, vocabSize: KEYS + VALUES };
  const model = new GPT(gptConfig("tiny", { ...sizes, ...rest }), { device, generator });
  const rates = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1 };
  const optimizer = new AdamW(model.parameters(), rates);
  for (let step = 0; step < steps; step++) {
    using _ = new Scope();
    const { ids, targets, length } = sequences(pairs, generator);
    const shape = [BATCH, length];
    model.loss(model.ids(ids, shape), model.ids(targets, shape), { count: BATCH * pairs }).backward();
    const rate = learningRateAt(step, { peak: 0.003, floor: 0.0001, warmup: 100, steps });
    optimizer.update(rate, optimizer.squaredNorm());
    model.clearGrad();
  }
  const result = await accuracy(model, pairs);
  optimizer.dispose();
  model.dispose();
  return result;
}

export const recall: Experiment = {
  name: "recall",
  question: "Is state size memory? Multi-query associative recall: accuracy against the number of pairs.",
  async run({ steps = 3000, seeds, threads }) {
    const device = await getDevice("wasm", threads > 0 ? { threads } : undefined);
    const rows: (string | number)[][] = [];
    const series: Record<string, [number, number][]> = {};
    for (const [name, rest] of Object.entries(MODELS)) {
      const points: [number, number][] = [];
      for (const pairs of PAIRS) {
        // The best of the seeds: the question is what a state can hold, not how often training finds it.
        let best = 0;
        for (let seed = 1; seed <= seeds; seed++) best = Math.max(best, await learn(device, rest, pairs, steps, seed));
        points.push([pairs, best]);
        process.stderr.write(`${name}, ${pairs} pairs: ${best.toFixed(3)}\n`);
      }
      rows.push([name, ...points.map(([, share]) => share)]);
      series[name] = points;
    }
    return {
      title: "Associative recall: share of values recalled, by number of pairs",
      columns: ["attention", ...PAIRS.map(String)],
      ...{ rows, series, axes: { x: "pairs", y: "accuracy", logX: true } },
      notes: { steps, seeds, batch: BATCH, keys: KEYS, values: VALUES, layers: 2, width: 64, heads: "2 of 16" },
    };
  },
};
