import { matmul, scope, tensor } from "../../src/index.js";
import { attempt, type Figure, type Question, type Result } from "../context.js";
import { describeGpu } from "../machine.js";
import { fastNormals } from "./inputs.js";
import { measureGpu } from "./measure.js";
import { unlessQuick, withCommas } from "./power.js";
import { floorOf, ratesOf } from "./rates.js";

export const gpuMatmul: Question = {
  name: "gpu-matmul",
  question: "How fast are products of square matrices? (f16 and bf16, f32 sums)",
  target: "f16: 250 TFLOP/s, aim 400",
  on: ["webgpu"],
  async run(context) {
    const failures: string[] = [];
    const figures: Figure[] = [];
    const rows: (number | string)[][] = [];
    const profiles: NonNullable<Result["profiles"]> = [];
    for (const dtype of ["f16", "bf16"] as const) {
      for (const n of context.quick ? [128, 256] : [4096, 8192]) {
        const name = `${dtype}, ${withCommas(n)}³`;
        context.progress(`  ${name}`);
        await attempt(failures, name, async () => {
          const device = await context.gpu();
          const make = (seed: number) => tensor(fastNormals(n * n, seed), [n, n], { device, dtype });
          const [a, b] = [make(1), make(2)];
          const rounds = { rounds: context.quick ? 3 : 20 };
          const timing = await measureGpu(device, () => scope(() => void matmul(a, b)), rounds);
          a.dispose();
          b.dispose();
          const work = { operations: 2 * n ** 3, bytes: 3 * 2 * n * n };
          const floor = floorOf(work, ratesOf(describeGpu(device)));
          const time = timing.gpu ?? timing.wall;
          const rate = work.operations / time.median / 1e9;
          const target = dtype === "f16" ? unlessQuick(context, { atLeast: 250, aim: 400 }) : {};
          const most = floor && work.operations / floor / 1e9;
          figures.push({ name, value: rate, unit: "TFLOP/s", spread: time.spread, floor: most, ...target });
          rows.push([name, timing.gpu?.median ?? "", timing.wall.median, rate, floor ?? ""]);
          profiles.push({ name, kernels: timing.kernels });
        });
      }
    }
    const columns = ["what", "GPU ms", "wall ms", "TFLOP/s", "floor, ms"];
    return { figures, table: { columns, rows }, failures, profiles };
  },
};
