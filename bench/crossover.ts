import { makeInputs, powerTask, type Question, softmaxTask } from "./context.js";
import { mainShape } from "./forward.js";
import { interleave } from "./measure.js";

/** Where power attention becomes the faster one, by straight lines between the measured lengths in log scale. */
export function crossing(points: readonly { tokens: number; ratio: number }[]): number {
  // ratio = softmax time / power time: 1 is the crossing. The last one counts, so a stray early win does not.
  for (let k = points.length - 1; k >= 0; k--) {
    if (points[k].ratio >= 1) continue;
    const next = points[k + 1];
    if (!next) return Number.POSITIVE_INFINITY;
    const [a, b] = [Math.log(points[k].ratio), Math.log(next.ratio)];
    const [x, y] = [Math.log(points[k].tokens), Math.log(next.tokens)];
    return Math.exp(x + ((y - x) * -a) / (b - a));
  }
  return points[0]?.tokens ?? Number.POSITIVE_INFINITY;
}

export const crossover: Question = {
  name: "crossover",
  question: "From which length on is power attention faster than softmax attention? (8 heads, d=64, p=2, gated)",
  target: "reported, not a target",
  async run(context) {
    const device = await context.device(context.threads);
    const lengths = context.quick ? [256, 512, 1024, 2048] : [256, 512, 1024, 2048, 4096, 8192, 16384];
    const points: { forward: { tokens: number; ratio: number }[]; backward: { tokens: number; ratio: number }[] } = {
      forward: [],
      backward: [],
    };
    const rows: number[][] = [];
    for (const tokens of lengths) {
      context.progress(`crossover: T=${tokens}`);
      const inputs = makeInputs(device, mainShape(tokens), true);
      const plain = makeInputs(device, mainShape(tokens), false);
      const times = await interleave(
        {
          power: powerTask(plain, { degree: 2 }, false),
          softmax: softmaxTask(plain, false),
          powerBoth: powerTask(inputs, { degree: 2 }, true),
          softmaxBoth: softmaxTask(inputs, true),
        },
        { warmUp: 1, rounds: context.quick || tokens > 8192 ? 3 : 5 },
      );
      inputs.dispose();
      plain.dispose();
      const { power, softmax, powerBoth, softmaxBoth } = times;
      points.forward.push({ tokens, ratio: softmax.median / power.median });
      points.backward.push({ tokens, ratio: softmaxBoth.median / powerBoth.median });
      rows.push([tokens, power.median, softmax.median, powerBoth.median, softmaxBoth.median]);
    }
    const columns = ["T", "power, ms", "softmax, ms", "power with backward, ms", "softmax with backward, ms"];
    return {
      figures: [
        { name: "forward: power attention wins from", value: crossing(points.forward), unit: "tokens" },
        { name: "with backward: it wins from", value: crossing(points.backward), unit: "tokens" },
      ],
      table: { columns, rows },
      notes: { threads: context.threads },
    };
  },
};
