import { type Figure, makeInputs, powerTask, type Question, softmaxTask } from "./context.js";
import { mainShape } from "./forward.js";
import { interleave } from "./measure.js";

interface Point {
  tokens: number;
  /** Softmax's time over power attention's. */
  ratio: number;
}

/** Where power attention becomes the faster one, by straight lines between the measured lengths in log scale. */
export function crossing(points: readonly Point[]): number {
  // The last crossing counts, so that a stray early win does not.
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
    const rows: (number | string)[][] = [];
    const figures: Figure[] = [];
    for (const backward of [false, true]) {
      const what = backward ? "forward and backward" : "forward";
      const chosen: Point[] = [];
      const chunked: Point[] = [];
      for (const tokens of lengths) {
        context.progress(`crossover: ${what}, T=${tokens}`);
        const shape = mainShape(tokens);
        const inputs = makeInputs(device, shape, backward);
        const times = await interleave(
          {
            chosen: powerTask(inputs, { degree: 2 }, backward),
            chunked: powerTask(inputs, { degree: 2, chunkSize: shape.chunkSize }, backward),
            softmax: softmaxTask(inputs, backward),
          },
          { warmUp: 1, rounds: context.quick || tokens > 8192 ? 3 : 7 },
        );
        inputs.dispose();
        const softmax = times.softmax.median;
        chosen.push({ tokens, ratio: softmax / times.chosen.median });
        chunked.push({ tokens, ratio: softmax / times.chunked.median });
        rows.push([what, String(tokens), times.chosen.median, times.chunked.median, softmax]);
      }
      figures.push(
        { name: `${what}: power attention wins from`, value: crossing(chosen), unit: "tokens" },
        { name: `${what}: its chunked form wins from`, value: crossing(chunked), unit: "tokens" },
      );
    }
    const columns = ["what", "T", "power attention, ms", "in chunks of 256, ms", "softmax attention, ms"];
    return { figures, table: { columns, rows }, notes: { threads: context.threads } };
  },
};
