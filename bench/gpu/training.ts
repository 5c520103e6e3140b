import type { GPT } from "../../src/models/index.js";
import { AdamW } from "../../src/nn/index.js";
import { trainStep } from "../../src/train/index.js";
import { attempt, type Context, type Figure, type Question, type Result } from "../context.js";
import { describeGpu } from "../machine.js";
import { type GpuTiming, measureGpu } from "./measure.js";
import { largeModel, trainingOperations } from "./model.js";
import { unlessQuick, withCommas } from "./power.js";
import { floorOf, ratesOf } from "./rates.js";

const RATES = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1 };

/** Updates as the training loop makes them: forward, backward, global norm, AdamW on f32 masters, and the loss read. */
async function timeSteps(
  model: GPT,
  optimizer: AdamW,
  batch: number,
  time: number,
  rounds: number,
): Promise<GpuTiming> {
  const { vocabSize } = model.config;
  const ids = Int32Array.from({ length: batch * time + 1 }, (_, k) => Math.imul(k, 2654435761) >>> 0).map(
    (bits) => (bits >>> 8) % vocabSize,
  );
  const { options } = model;
  const rows = { inputs: ids.subarray(0, -1), targets: ids.subarray(1), shape: [batch, time] };
  return measureGpu(
    options.device as Parameters<typeof measureGpu>[0],
    async () => {
      const { loss } = await trainStep(model, optimizer, [rows], { learningRate: 1e-4, dtype: "f16" });
      if (!Number.isFinite(loss)) throw new Error("the loss is not a number");
    },
    { rounds },
  );
}

interface Case {
  batch: number;
  time: number;
}

function casesOf({ quick }: Context, attention: "power" | "softmax"): Case[] {
  const short = quick ? { batch: 2, time: 32 } : { batch: 16, time: 1024 };
  if (attention === "softmax") return [short];
  return [short, ...(quick ? [64, 128] : [16384, 65536]).map((time) => ({ batch: 1, time }))];
}

export const gpuTraining: Question = {
  name: "gpu-training",
  question: "How fast does GPT-2 124M train? (f16 with f32 master weights, AdamW, T=1,024, B=16, and longer at B=1)",
  target:
    "120,000 tokens/s at T=1,024, aim 250,000; power attention at T=16,384 and 65,536 within 15 % of its own there",
  on: ["webgpu"],
  async run(context) {
    const failures: string[] = [];
    const figures: Figure[] = [];
    const rows: (number | string)[][] = [];
    const profiles: NonNullable<Result["profiles"]> = [];
    for (const attention of ["power", "softmax"] as const) {
      await attempt(failures, attention, async () => {
        context.progress(`  ${attention}: making the model`);
        const device = await context.gpu();
        const model = largeModel(context, device, attention);
        const optimizer = new AdamW(model.parameters(), RATES);
        let base: { name: string; rate: number } | undefined;
        for (const { batch, time } of casesOf(context, attention)) {
          const name = `${attention}, T=${withCommas(time)}, B=${batch}`;
          context.progress(`  ${name}`);
          await attempt(failures, name, async () => {
            device.resetPeak();
            const timing = await timeSteps(model, optimizer, batch, time, context.quick ? 2 : 20);
            const tokens = batch * time;
            const rate = (1000 * tokens) / timing.wall.median;
            context.progress(`    ${Math.round(rate)} tokens/s`);
            const operations = trainingOperations(model.config, batch, time, device);
            // Weights, gradients and moments are small beside activations, which no formula here counts.
            const floor = floorOf({ operations, bytes: 0 }, ratesOf(describeGpu(device)));
            const most = floor && (1000 * tokens) / floor;
            const first = base === undefined;
            const target = first ? unlessQuick(context, { atLeast: 120_000, aim: 250_000 }) : {};
            figures.push({ name, value: rate, unit: "tokens/s", spread: timing.wall.spread, floor: most, ...target });
            if (base !== undefined) {
              const value = 100 * (rate / base.rate - 1);
              figures.push({
                name: `${name}: rate against ${base.name}`,
                value,
                unit: "%",
                ...unlessQuick(context, { atLeast: -15 }),
              });
            }
            base ??= { name: `T=${withCommas(time)}`, rate };
            const memory = device.memory().peak / 2 ** 30;
            rows.push([
              name,
              rate,
              timing.wall.median,
              timing.gpu?.median ?? "",
              operations / 1e12,
              floor ?? "",
              memory,
            ]);
            profiles.push({ name, kernels: timing.kernels });
          });
        }
        optimizer.dispose();
        model.dispose();
        context.releaseGpus();
      });
    }
    const columns = ["what", "tokens/s", "wall ms a step", "GPU ms", "TFLOP", "floor, ms", "peak GiB"];
    return { figures, table: { columns, rows }, failures, profiles };
  },
};
