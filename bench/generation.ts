import { Generator, noGrad, Scope } from "../src/index.js";
import { GPT, gptConfig } from "../src/models/index.js";
import type { Question } from "./context.js";
import { timing } from "./measure.js";

/** Milliseconds of each token of a text, and the bytes carried after the last. */
export async function tokenTimes(model: GPT, tokens: number): Promise<{ times: number[]; bytes: number }> {
  const caches = model.caches(1);
  const times: number[] = [];
  for (let t = 0; t < tokens; t++) {
    const start = performance.now();
    using _ = new Scope();
    const id = (t * 31) % model.config.vocabSize;
    await noGrad(() => model.forward(model.ids([id], [1, 1]), { caches, last: true })).data();
    times.push(performance.now() - start);
  }
  const bytes = caches.reduce((sum, cache) => sum + cache.bytes, 0);
  for (const cache of caches) cache.dispose();
  return { times, bytes };
}

export const generation: Question = {
  name: "generation",
  question: "How fast does a model of a million parameters write? (5 layers, n=128, 4 heads of 32, p=2, batch 1)",
  target: "500 tokens/s; the same at every length",
  async run(context) {
    const device = await context.device(context.threads);
    const model = new GPT(gptConfig("1M", { vocabSize: 256 }), { device, generator: new Generator(1) });
    const length = context.quick ? 400 : 4000;
    await tokenTimes(model, 200);
    const { times, bytes } = await tokenTimes(model, length);
    model.dispose();
    const early = timing(times.slice(0, length / 4));
    const late = timing(times.slice(-length / 4));
    return {
      figures: [
        { name: "tokens/s", value: 1000 / timing(times).median, unit: "", atLeast: 500, spread: late.spread },
        { name: "late against early, per token", value: 100 * (late.median / early.median - 1), unit: "%", atMost: 10 },
        { name: "state", value: bytes / 2 ** 20, unit: "MiB" },
      ],
      notes: { tokens: length, threads: context.threads },
    };
  },
};
