import { makeInputs, powerTask, type Question } from "./context.js";
import { mainShape } from "./forward.js";
import { interleave } from "./measure.js";

export const perToken: Question = {
  name: "per-token",
  question: "Does a token cost the same in a long sequence? (chunked forward, T=65,536 against T=4,096)",
  target: "within 10 %",
  async run(context) {
    const device = await context.device(context.threads);
    const [short, long] = context.quick ? [2048, 8192] : [4096, 65536];
    const times = await interleave(
      Object.fromEntries(
        [short, long].map((tokens) => {
          const inputs = makeInputs(device, mainShape(tokens), false);
          // The chunked form at both lengths: left to itself, the library takes the quadratic one where that costs less.
          return [String(tokens), powerTask(inputs, { degree: 2, chunkSize: 256 }, false)];
        }),
      ),
      { warmUp: 1, rounds: context.quick ? 3 : 5 },
    );
    const each = (tokens: number) => (1e3 * times[String(tokens)].median) / tokens;
    return {
      figures: [
        {
          name: "long against short, per token",
          value: 100 * (each(long) / each(short) - 1),
          unit: "%",
          atMost: 10,
          spread: times[String(long)].spread,
        },
        { name: "a token, short", value: each(short), unit: "µs", spread: times[String(short)].spread },
        { name: "a token, long", value: each(long), unit: "µs", spread: times[String(long)].spread },
      ],
      notes: { short, long, threads: context.threads },
    };
  },
};
