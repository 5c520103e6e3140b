import { attempt, type Figure, type Question } from "../context.js";
import { gpuShape, type PowerTime, powerTable, timeFigures, timePower } from "./power.js";

/** States of 52,360 × 32 are large: long chunks keep them few, and at this length they cost little inside. */
const CHUNK = 2048;

export const gpuP4: Question = {
  name: "gpu-p4",
  question: "What does degree 4 take? (p=4, d=32, 8 heads, T=65,536, gated, bf16; beside p=2, d=64)",
  target: "reported with its floor; aim 40 % of the p=2 rate in TFLOP/s",
  on: ["webgpu"],
  async run(context) {
    const { quick } = context;
    const failures: string[] = [];
    const times: PowerTime[] = [];
    const figures: Figure[] = [];
    for (const backward of [false, true]) {
      const what = backward ? "forward and backward" : "forward";
      const base = await attempt(failures, `p=2, ${what}`, () =>
        timePower(context, { name: `p=2, d=64, ${what}`, shape: gpuShape(context, 65536), backward }),
      );
      if (base) times.push(base);
      for (const chunkSize of [undefined, quick ? 128 : CHUNK]) {
        const name = `p=4, ${what}, ${chunkSize === undefined ? "the library's choice" : "in chunks"}`;
        const shape = gpuShape(context, 65536, { degree: 4, headDim: 32, valueDim: 32 });
        const time = await attempt(failures, name, () => timePower(context, { name, shape, backward, chunkSize }));
        if (!time) continue;
        times.push(time);
        figures.push(...timeFigures(time));
        if (base) figures.push({ name: `${name}: rate against p=2`, value: (100 * time.rate) / base.rate, unit: "%" });
      }
    }
    return { figures, ...powerTable(times), failures };
  },
};
