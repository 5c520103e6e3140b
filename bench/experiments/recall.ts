import { type Device, expandedDim, Generator, noGrad, Scope, tensor } from "../../src/index.js";
import { AdamW, Block, Embedding, LayerNorm, Linear, linearCrossEntropy, Module } from "../../src/nn/index.js";
import { learningRateAt } from "../../src/train/index.js";
import { deviceAt, type Experiment, groups, type Job, meanLine, type Place, shown, slug } from "./experiment.js";
import { KEYS, NO_VALUE, type Sequences, sequences, VALUES } from "./recall-task.js";

/** Numbers of pairs that a model is asked for. */
const PAIRS = [4, 8, 16, 32, 64, 128, 256, 512, 1024];
/** It is trained on as many of each up to this. */
const MOST_TRAINED = 256;
const STEPS = 1000;
const TOKENS_PER_STEP = 2048;

/** Heads of 8, so that the states are small enough to be filled: 8, 36 and 330 rows. */
const HEAD = 8;
const KINDS = {
  softmax: { attention: "softmax" },
  "p=4": { degree: 4 },
  "p=2": { degree: 2 },
  "p=1": { degree: 1 },
} as const;
type Kind = keyof typeof KINDS;
const NAMES = Object.keys(KINDS) as Kind[];
const SIZES = { layers: 1, width: 64, heads: 1, headSize: HEAD };
const RATES = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1 };

/** Share of values recalled, by number of pairs. */
type Accuracy = [number, number][];

/** One block of attention and MLP over the sum of a key and a value. Nothing has to be forgotten: no gates. */
class RecallModel extends Module {
  readonly keys: Embedding;
  readonly values: Embedding;
  readonly block: Block;
  readonly norm: LayerNorm;
  readonly out: Linear;

  constructor(
    kind: Kind,
    readonly device: Device,
    generator: Generator,
  ) {
    super();
    const [nEmbd, options] = [SIZES.width, { device, generator }];
    this.keys = new Embedding(KEYS, nEmbd, options);
    this.values = new Embedding(NO_VALUE + 1, nEmbd, options);
    const attention = { nHead: SIZES.heads, headSize: HEAD, disableGating: true, ...KINDS[kind] };
    this.block = new Block({ nEmbd, ...attention }, options);
    this.norm = new LayerNorm(nEmbd, options);
    this.out = new Linear(nEmbd, VALUES, options);
  }

  ids(values: Int32Array, { shape }: Sequences) {
    return tensor(values, shape, { device: this.device, dtype: "i32" });
  }

  hidden(data: Sequences) {
    const x = this.keys.forward(this.ids(data.keys, data)).add(this.values.forward(this.ids(data.values, data)));
    return this.norm.forward(this.block.forward(x));
  }

  loss(data: Sequences) {
    const count = data.targets.length / 2;
    return linearCrossEntropy(this.hidden(data), this.out.weight, this.ids(data.targets, data), { count });
  }

  logits(data: Sequences) {
    return this.out.forward(this.hidden(data));
  }
}

async function accuracy(model: RecallModel, pairs: number): Promise<number> {
  using _ = new Scope();
  const data = sequences(pairs, Math.max(4, 2048 / pairs), new Generator(999));
  const logits = await noGrad(() => model.logits(data)).data();
  let right = 0;
  for (const [row, target] of data.targets.entries()) {
    if (target < 0) continue;
    const scores = logits.subarray(row * VALUES, (row + 1) * VALUES);
    if (scores.every((score) => score <= scores[target])) right++;
  }
  return right / (data.targets.length / 2);
}

async function learned(kind: Kind, seed: number, steps: number, place: Place) {
  const device = await deviceAt(place);
  const generator = new Generator(seed);
  const model = new RecallModel(kind, device, generator);
  const optimizer = new AdamW(model.parameters(), RATES);
  const trained = PAIRS.filter((pairs) => pairs <= MOST_TRAINED);
  for (let step = 0; step < steps; step++) {
    using _ = new Scope();
    const pairs = trained[generator.integer(trained.length)];
    const loss = model.loss(sequences(pairs, TOKENS_PER_STEP / (2 * pairs), generator));
    loss.backward();
    const rate = learningRateAt(step, { peak: 0.003, floor: 0.00015, warmup: 50, steps });
    optimizer.update(rate, optimizer.squaredNorm());
    await device.sync();
    model.clearGrad();
    if ((step + 1) % Math.ceil(steps / 4) === 0) {
      place.progress(`step ${step + 1}: loss ${(await loss.item()).toFixed(4)} at ${pairs} pairs`);
    }
  }
  const value: Accuracy = [];
  for (const pairs of PAIRS) value.push([pairs, await accuracy(model, pairs)]);
  optimizer.dispose();
  model.dispose();
  if (place.threads > 0) device.dispose();
  return { value, device: device.description };
}

/** Where a line falls below a half, between its points by logarithm: 0 if it starts there, undefined if it never does. */
export function halfway(line: Accuracy): number | undefined {
  const k = line.findIndex(([, share]) => share < 0.5);
  if (k < 0) return undefined;
  if (k === 0) return 0;
  const [[x0, y0], [x1, y1]] = [line[k - 1], line[k]];
  return x0 * (x1 / x0) ** ((y0 - 0.5) / (y0 - y1));
}

export const recall: Experiment<Accuracy> = {
  name: "recall",
  question: "Is state size memory? Multi-query associative recall: accuracy against the number of pairs.",
  jobs({ steps = STEPS, seeds }) {
    return Array.from({ length: seeds }, (_, k) => k + 1).flatMap((seed) =>
      NAMES.map(
        (kind): Job<Accuracy> => ({
          name: `recall-${slug(kind)}-steps-${steps}-seed-${seed}`,
          settings: { kind, seed, steps, tokensPerStep: TOKENS_PER_STEP, keys: KEYS, values: VALUES, ...SIZES },
          run: (place) => learned(kind, seed, steps, place),
        }),
      ),
    );
  },
  findings(records) {
    const lines = groups(records, "kind", NAMES).map(
      ([kind, runs]) => [kind, meanLine(runs.map(({ value }) => value))] as const,
    );
    const rowsOf = (kind: Kind) => {
      const config = KINDS[kind];
      return "degree" in config ? String(expandedDim(HEAD, config.degree)) : "one a token";
    };
    return {
      title: "Associative recall: share of values recalled, by number of pairs",
      columns: ["attention", "rows of the state", ...PAIRS.map(shown)],
      rows: lines.map(([kind, line]) => [kind, rowsOf(kind), ...line.map(([, share]) => share)]),
      series: Object.fromEntries(lines),
      axes: { x: "pairs", y: "share of values recalled", logX: true },
      seen: lines.map(([kind, line]) => {
        const half = halfway(line);
        const [most, last] = line[line.length - 1];
        const what = `${kind} (rows of its state: ${rowsOf(kind)})`;
        if (half === undefined) return `${what} recalls ${(100 * last).toFixed(0)} % of ${shown(most)} pairs.`;
        return `${what} recalls half of ${half === 0 ? `fewer than ${PAIRS[0]}` : `about ${half.toFixed(0)}`} pairs.`;
      }),
    };
  },
};
