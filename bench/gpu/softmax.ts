import { powerBytes, quadraticOperations } from "../arithmetic.js";
import { attempt, type Context, type Figure, type Question, softmaxTask } from "../context.js";
import { describeGpu } from "../machine.js";
import { fastInputs } from "./inputs.js";
import { measureGpu } from "./measure.js";
import { type GpuShape, gpuShape, type PowerTime, powerTable, timeFigures, unlessQuick, withCommas } from "./power.js";
import { floorOf, ratesOf } from "./rates.js";

/** Milliseconds of FlashAttention-2 on an H200, bf16, 8 heads of 64, 65,536 tokens in all: forward, and with gradients. */
const FLASH: Record<number, readonly [forward: number, both: number]> = {
  65536: [14.4, 53],
  16384: [3.68, 13.7],
  4096: [0.98, 3.94],
  1024: [0.32, 1.43],
};

async function timeSoftmax(context: Context, name: string, shape: GpuShape, backward: boolean): Promise<PowerTime> {
  context.progress(`  ${name}`);
  const device = await context.gpu();
  const inputs = fastInputs(device, shape, { dtype: "bf16", requiresGrad: backward });
  try {
    const timing = await measureGpu(device, softmaxTask(inputs, backward), { rounds: context.quick ? 3 : 20 });
    const operations = quadraticOperations(shape, backward);
    const bytes = powerBytes({ ...shape, chunkSize: null }, 2, backward);
    const floor = floorOf({ operations, bytes }, ratesOf(describeGpu(device)));
    const ms = (timing.gpu ?? timing.wall).median;
    context.progress(`    ${ms.toFixed(2)} ms, wall ${timing.wall.median.toFixed(2)} ms`);
    return { name, timing, ms, operations, bytes, floor, rate: operations / ms / 1e9, chunkSize: null };
  } finally {
    inputs.dispose();
  }
}

export const gpuSoftmax: Question = {
  name: "gpu-softmax",
  question: "How long does softmax attention take? (65,536 tokens in all, 8 heads, d=64; and d=128 at T=4,096)",
  target: "reported; the aim is what FlashAttention-2 takes on an H200",
  on: ["webgpu"],
  async run(context) {
    const failures: string[] = [];
    const times: PowerTime[] = [];
    const figures: Figure[] = [];
    const cases = [1024, 4096, 16384, 65536].map((tokens) => ({ tokens, headDim: 64 }));
    for (const { tokens, headDim } of [...cases, { tokens: 4096, headDim: 128 }]) {
      const shape = gpuShape(context, tokens, {
        headDim,
        valueDim: headDim,
        ...(headDim > 64 && { queryHeads: 4, heads: 4 }),
      });
      for (const backward of [false, true]) {
        const name = `T=${withCommas(tokens)}${headDim > 64 ? `, d=${headDim}` : ""}, ${backward ? "forward and backward" : "forward"}`;
        const time = await attempt(failures, name, () => timeSoftmax(context, name, shape, backward));
        if (!time) continue;
        times.push(time);
        const aim = headDim > 64 ? {} : unlessQuick(context, { aim: FLASH[tokens][backward ? 1 : 0] });
        figures.push(...timeFigures(time, aim));
      }
    }
    return { figures, ...powerTable(times), failures };
  },
};
