import { attempt, type Figure, type Question } from "../context.js";
import { gpuShape, type PowerTime, powerTable, timeFigures, timePower, unlessQuick } from "./power.js";

export const gpuPortable: Question = {
  name: "gpu-portable",
  question: "How long without matrix units, as on most machines? (T=65,536, 8 heads, d=64, p=2, gated)",
  target: "forward 20 ms, aim 10",
  on: ["webgpu"],
  async run(context) {
    const failures: string[] = [];
    const times: PowerTime[] = [];
    const figures: Figure[] = [];
    const shape = gpuShape(context, 65536);
    for (const [name, backward, dtype] of [
      ["forward", false, "bf16"],
      ["forward, f32", false, "f32"],
      ["forward and backward", true, "bf16"],
    ] as const) {
      const time = await attempt(failures, name, () =>
        timePower(context, { name, shape, backward, dtype, portable: true }),
      );
      if (!time) continue;
      times.push(time);
      const target = name === "forward" ? unlessQuick(context, { atMost: 20, aim: 10 }) : {};
      figures.push(...timeFigures(time, target));
    }
    return { figures, ...powerTable(times), failures };
  },
};
