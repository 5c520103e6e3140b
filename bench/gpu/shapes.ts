import { attempt, type Figure, type Question } from "../context.js";
import { type GpuShape, gpuShape, type PowerTime, powerTable, timePower, unlessQuick } from "./power.js";

const SHAPES: [string, Partial<GpuShape>][] = [
  ["d=64", {}],
  ["d=128", { headDim: 128, valueDim: 128 }],
  ["8 query heads to a key head", { heads: 1 }],
];

export const gpuShapes: Question = {
  name: "gpu-shapes",
  question: "Do wide heads and grouped heads keep the rate? (d=128, and 8 query heads to 1 key head at d=64, p=2)",
  target: "60 % of the rate at d=64 in TFLOP/s, aim the same rate",
  on: ["webgpu"],
  async run(context) {
    const failures: string[] = [];
    const times: PowerTime[] = [];
    const figures: Figure[] = [];
    for (const backward of [false, true]) {
      let base: PowerTime | undefined;
      for (const [label, rest] of SHAPES) {
        const name = `${label}, ${backward ? "forward and backward" : "forward"}`;
        const shape = gpuShape(context, 65536, rest);
        const time = await attempt(failures, name, () => timePower(context, { name, shape, backward }));
        if (!time) continue;
        times.push(time);
        if (label === SHAPES[0][0]) base = time;
        else if (base) {
          const target = unlessQuick(context, { atLeast: 60, aim: 100 });
          const value = (100 * time.rate) / base.rate;
          figures.push({
            name: `${name}: rate against d=64`,
            value,
            unit: "%",
            spread: time.timing.wall.spread,
            ...target,
          });
        }
      }
    }
    return { figures, ...powerTable(times), failures };
  },
};
