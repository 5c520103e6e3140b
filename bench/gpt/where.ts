/**
 * Where does the time of a GPT go on a GPU, training or writing? Wall time of whole steps, then the GPU time of each
 * kernel by timestamp queries, one step with every dispatch in a pass of its own.
 *
 *     node dist/bench/gpt/where.js --mode train --attention power --time 1024 --batch 16 --dtype f16
 *     node dist/bench/gpt/where.js --mode write --attention power --time 60000 --dtype f16
 */
import { parseArgs } from "node:util";
import { getDevice } from "../../src/devices/get-device.js";
import type { WebGpuDevice } from "../../src/devices/webgpu/device.js";
import { GPT, GPT_SIZES, type GPTSize, gptConfig } from "../../src/models/index.js";
import { AdamW } from "../../src/nn/index.js";
import type { DType } from "../../src/tensor/dtype.js";
import { Generator } from "../../src/tensor/random.js";
import { Scope } from "../../src/tensor/scope.js";
import { noGrad } from "../../src/tensor/tape.js";
import { trainStep } from "../../src/train/index.js";

const { values: given } = parseArgs({
  options: {
    mode: { type: "string", default: "train" },
    size: { type: "string", default: "124M" },
    layers: { type: "string" },
    vocabulary: { type: "string", default: "50257" },
    attention: { type: "string", default: "power" },
    chunk: { type: "string", default: "0" },
    time: { type: "string", default: "1024" },
    batch: { type: "string", default: "16" },
    dtype: { type: "string", default: "f16" },
    steps: { type: "string", default: "10" },
    recompute: { type: "boolean", default: false },
  },
});
const [time, rows, steps, vocabSize] = [given.time, given.batch, given.steps, given.vocabulary].map(Number);
const attention = given.attention as "power" | "softmax";
const dtype = given.dtype as DType;
const size = given.size as GPTSize;

const device = (await getDevice("webgpu")) as WebGpuDevice;
const nLayer = given.layers ? Number(given.layers) : GPT_SIZES[size].nLayer;
const config = gptConfig(size, { vocabSize, contextLength: time, attention, chunkSize: Number(given.chunk), nLayer });
const model = new GPT(config, { device, dtype, generator: new Generator(1) });
const generator = new Generator(2);
const draw = (count: number) => Int32Array.from({ length: count }, () => generator.integer(vocabSize));
const median = (times: number[]) => [...times].sort((a, b) => a - b)[Math.floor(times.length / 2)];
const say = (text: string) => console.log(text);
say(`${device.description}; ${model.parameterCount.toLocaleString("en")} parameters, ${attention} attention, ${dtype}`);

/** Milliseconds from one finished step to the next, and of those the time that queuing takes the CPU. */
let wall: number;
let queued: number;
let step: () => Promise<unknown>;
let tokens = 1;
const recorded: number[] = [];
const timed = <T>(run: () => T): T => {
  const start = performance.now();
  const result = run();
  recorded.push(performance.now() - start);
  return result;
};
if (given.mode === "train") {
  const options = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1 };
  const optimizer = new AdamW(model.parameters(), options);
  const batch = { inputs: draw(rows * time), targets: draw(rows * time), shape: [rows, time] };
  const { recompute } = given;
  step = () => timed(() => trainStep(model, optimizer, [batch], { learningRate: 1e-4, dtype, recompute }));
  tokens = rows * time;
  for (let k = 0; k < 3; k++) say(`warm-up ${k}: ${JSON.stringify(await step())}`);
  recorded.length = 0;
  const ends: number[] = [performance.now()];
  // One step ahead of the one awaited, as training runs.
  let last = step();
  for (let k = 0; k < steps; k++) {
    const next = step();
    await last;
    ends.push(performance.now());
    last = next;
  }
  await last;
  wall = median(ends.slice(2).map((end, k) => end - ends[k + 1]));
  queued = median(recorded);
} else {
  const caches = model.caches(1);
  const read = async (ids: Int32Array) => {
    const logits = timed(() => {
      using _ = new Scope();
      return noGrad(() => model.forward(model.ids(ids, [1, ids.length]), { caches, last: true })).data();
    });
    return logits;
  };
  const piece = attention === "softmax" ? time : 1024;
  for (let at = 0; at < time; at += piece) await read(draw(Math.min(piece, time - at)));
  step = () => read(draw(1));
  for (let k = 0; k < 40; k++) await step();
  recorded.length = 0;
  const times: number[] = [];
  for (let k = 0; k < 20 * steps; k++) {
    const start = performance.now();
    await step();
    times.push(performance.now() - start);
  }
  wall = times.reduce((a, b) => a + b, 0) / times.length; // the mean: every 32nd token folds the tail
  queued = median(recorded);
}
say(
  `${wall.toFixed(2)} ms a step, ${Math.round((1000 * tokens) / wall).toLocaleString("en")} tokens/s; ` +
    `queuing takes the CPU ${queued.toFixed(2)} ms; ${(device.memory().reserved / 2 ** 30).toFixed(1)} GiB`,
);
if (device.gpu.features.has("timestamp-query")) {
  const { gpuMs, kernels } = await device.profile(step);
  say(
    `GPU, one step: ${gpuMs.toFixed(2)} ms from first to last, ${kernels.reduce((n, k) => n + k.ms, 0).toFixed(2)} in kernels`,
  );
  for (const { name, count, ms } of kernels) {
    say(
      `${ms.toFixed(3).padStart(9)} ms ${String(count).padStart(4)} × ${((1000 * ms) / count).toFixed(1).padStart(7)} µs  ${name}`,
    );
  }
}
process.exit(0);
