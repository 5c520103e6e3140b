import { noGrad, Scope } from "../../src/index.js";
import { attempt, type Figure, type Question, type Result } from "../context.js";
import { describeGpu } from "../machine.js";
import { measureGpu } from "./measure.js";
import { largeModel } from "./model.js";
import { unlessQuick, withCommas } from "./power.js";
import { floorOf, ratesOf } from "./rates.js";

/** Tokens of the prompt read at once, as `generate` does. */
const PIECE = 1024;

export const gpuDecoding: Question = {
  name: "gpu-decoding",
  question: "How fast does the 124M model write, early and late? (f16, batch 1, logits read for each token)",
  target: "250 tokens/s at position 1,000 and at 60,000, aim 600",
  on: ["webgpu"],
  async run(context) {
    const { quick } = context;
    const failures: string[] = [];
    const figures: Figure[] = [];
    const rows: (number | string)[][] = [];
    const profiles: NonNullable<Result["profiles"]> = [];
    const device = await context.gpu();
    context.progress("  making the model");
    const model = largeModel(context, device, "power");
    const { vocabSize } = model.config;
    const caches = model.caches(1);
    const forward = (ids: readonly number[]) =>
      noGrad(() => model.forward(model.ids(ids, [1, ids.length]), { caches, last: true }));
    for (const position of quick ? [8, 100] : [1000, 60_000]) {
      const name = `position ${withCommas(position)}`;
      context.progress(`  ${name}`);
      await attempt(failures, name, async () => {
        const start = performance.now();
        const before = caches[0].tokens;
        while (caches[0].tokens < position) {
          using _ = new Scope();
          const at = caches[0].tokens;
          const count = Math.min(quick ? 32 : PIECE, position - at);
          forward(Array.from({ length: count }, (_, k) => (31 * (at + k)) % vocabSize));
          await device.sync(); // or pieces queue up with all that they hold
        }
        const readRate = (1000 * (position - before)) / (performance.now() - start);
        const timing = await measureGpu(
          device,
          async () => {
            using _ = new Scope();
            await forward([(31 * caches[0].tokens) % vocabSize]).data();
          },
          // A fold of the state's tail comes every 32 tokens.
          { rounds: quick ? 3 : 256 },
        );
        const bytes = caches.reduce((sum, cache) => sum + cache.bytes, 0);
        const work = { operations: 0, bytes: 2 * model.parameterCount + bytes };
        const floor = floorOf(work, ratesOf(describeGpu(device)));
        const rate = 1000 / timing.wall.mean; // the folds included
        const target = unlessQuick(context, { atLeast: 250, aim: 600 });
        const { spread } = timing.wall;
        figures.push({ name, value: rate, unit: "tokens/s", spread, floor: floor && 1000 / floor, ...target });
        rows.push([
          name,
          timing.wall.mean,
          timing.wall.median,
          timing.gpu?.median ?? "",
          floor ?? "",
          bytes / 2 ** 20,
          readRate,
        ]);
        profiles.push({ name, kernels: timing.kernels });
      });
    }
    for (const cache of caches) cache.dispose();
    model.dispose();
    const columns = [
      "what",
      "wall ms a token",
      "median",
      "GPU ms, median",
      "floor, ms",
      "state, MiB",
      "prompt tokens/s",
    ];
    return { figures, table: { columns, rows }, failures, profiles };
  },
};
