import { Generator, getDevice, noGrad, Scope } from "../../src/index.js";
import { GPT, gptConfig } from "../../src/models/index.js";
import { timing } from "../measure.js";
import type { Experiment } from "./experiment.js";

const POSITIONS = [100, 1000, 10_000, 30_000];
/** Tokens timed at each position. */
const TIMED = 50;

export const decoding: Experiment = {
  name: "decoding",
  question:
    "Does generation slow down? Milliseconds per token and bytes carried, by position, beside softmax with a cache.",
  async run({ threads }) {
    const device = await getDevice("wasm", threads > 0 ? { threads } : undefined);
    const rows: (string | number)[][] = [];
    const series: Record<string, [number, number][]> = {};
    for (const attention of ["power", "softmax"] as const) {
      const config = gptConfig("1M", { vocabSize: 256, attention, contextLength: 256 });
      const model = new GPT(config, { device, generator: new Generator(1) });
      const caches = model.caches(1);
      const token = async (t: number) => {
        using _ = new Scope();
        await noGrad(() => model.forward(model.ids([(t * 31) % 256], [1, 1]), { caches, last: true })).data();
      };
      series[attention] = [];
      for (const position of POSITIONS) {
        while (caches[0].tokens < position) await token(caches[0].tokens);
        const times: number[] = [];
        for (let k = 0; k < TIMED; k++) {
          const start = performance.now();
          await token(position + k);
          times.push(performance.now() - start);
        }
        const bytes = caches.reduce((sum, cache) => sum + cache.bytes, 0);
        rows.push([attention, position, timing(times).median, bytes / 2 ** 20]);
        series[attention].push([position, timing(times).median]);
        process.stderr.write(`${attention} at ${position}: ${timing(times).median.toFixed(2)} ms\n`);
      }
      for (const cache of caches) cache.dispose();
      model.dispose();
    }
    return {
      title: "Time and memory of a token, by position",
      columns: ["attention", "position", "ms per token", "MiB carried"],
      ...{ rows, series, axes: { x: "position", y: "ms per token", logX: true } },
      notes: { model: "1M", device: device.description },
    };
  },
};
