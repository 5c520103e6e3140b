import { type Context, powerTask, type Question, softmaxTask } from "./context.js";
import { mainShape } from "./forward.js";
import { fastInputs } from "./gpu/inputs.js";
import { WARM_MS } from "./gpu/measure.js";
import { timing } from "./measure.js";

const LENGTHS = [1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072];
/** Milliseconds that one call may be expected to take; beyond it a curve ends. Softmax's next call is four times as long. */
const LONGEST_CALL = { softmax: 10_000, power: 60_000 };
const LONGEST_QUICK = 500;
/** Milliseconds to spend on the calls of one point, beyond the first. */
const POINT_BUDGET = 1_500;
const QUICK_BUDGET = 50;

interface Curve {
  name: string;
  backward: boolean;
  softmax: boolean;
  points: [number, number][];
  /** Of the last call, and its length and tokens in all. */
  last?: { milliseconds: number; tokens: number; total: number };
  /** Why it ended before the longest length. */
  ended?: string;
}

/** From the last length by the law of its kind: the cost of a token grows with T, or stays. */
function expected({ last, softmax }: Curve, tokens: number, total: number): number {
  if (!last) return 0;
  return last.milliseconds * (total / last.total) * (softmax ? tokens / last.tokens : 1);
}

/** A GPU is given the same number of tokens at each length, as a batch; a CPU one sequence. */
function batchOf({ kind, quick }: Context, tokens: number): number {
  return kind === "webgpu" && !quick ? Math.max(1, LENGTHS[LENGTHS.length - 1] / tokens) : 1;
}

/** The median of as many calls as fit the budget, at least one; those that compile and raise a GPU's clocks come before it. */
async function timeCalls(
  device: { sync(): Promise<void> },
  run: () => undefined,
  { budget, warm }: { budget: number; warm: number },
): Promise<number> {
  const once = async () => {
    const start = performance.now();
    run();
    await device.sync();
    return performance.now() - start;
  };
  if (warm > 0) await once(); // compiles
  const began = performance.now();
  const times = [await once()];
  if (times[0] > budget) return times[0];
  while (performance.now() - began < warm) await once();
  times.length = 0;
  const end = performance.now() + budget;
  do times.push(await once());
  while (performance.now() < end && times.length < 20);
  return timing(times).median;
}

export const throughputByContext: Question = {
  name: "context",
  question: "How many tokens a second, by length of context? (8 heads, d=64, p=2, gated, beside softmax attention)",
  target: "reported, not a target",
  on: ["wasm", "webgpu"],
  async run(context) {
    const lengths = context.quick ? [64, 128, 256] : LENGTHS;
    const failures: string[] = [];
    const curves: Curve[] = [false, true].flatMap((backward) =>
      [false, true].map((softmax) => ({
        name: `${softmax ? "softmax" : "power"}, ${backward ? "forward and backward" : "forward"}`,
        ...{ backward, softmax, points: [] },
      })),
    );
    for (const tokens of lengths) {
      const batch = batchOf(context, tokens);
      const total = batch * tokens;
      const due = curves.filter((curve) => {
        if (curve.ended !== undefined) return false;
        const wanted = expected(curve, tokens, total);
        const longest = context.quick ? LONGEST_QUICK : LONGEST_CALL[curve.softmax ? "softmax" : "power"];
        if (wanted > longest)
          curve.ended = `T=${tokens.toLocaleString("en")} would take ${Math.round(wanted / 1000)} s`;
        return curve.ended === undefined;
      });
      if (due.length === 0) break;
      context.progress(`  T=${tokens}, B=${batch}`);
      const device = await context.main();
      const shape = { ...mainShape(tokens), batch };
      const inputs = fastInputs(device, shape, {
        dtype: context.kind === "webgpu" ? "bf16" : "f32",
        requiresGrad: true,
      });
      for (const curve of due) {
        const { softmax, backward } = curve;
        const choice = { degree: 2, chunkSize: context.chunkSize };
        const run = softmax ? softmaxTask(inputs, backward) : powerTask(inputs, choice, backward);
        try {
          const milliseconds = await timeCalls(device, run, {
            budget: context.quick ? QUICK_BUDGET : POINT_BUDGET,
            warm: context.kind === "webgpu" ? (context.quick ? 1 : WARM_MS) : 0,
          });
          curve.points.push([tokens, (1000 * total) / milliseconds]);
          curve.last = { milliseconds, tokens, total };
        } catch (error) {
          curve.ended = error instanceof Error ? error.message : String(error);
          // Too long for this machine's memory is an answer; anything else is not.
          if (!(error instanceof RangeError)) failures.push(`${curve.name}, T=${tokens}: ${curve.ended}`);
        }
      }
      inputs.dispose();
    }
    const at = ({ points }: Curve, tokens: number) => points.find(([T]) => T === tokens)?.[1];
    const rows = lengths.map((tokens) => [
      tokens.toLocaleString("en"),
      String(batchOf(context, tokens)),
      ...curves.map((curve) => at(curve, tokens) ?? "–"),
    ]);
    return {
      figures: curves.flatMap((curve) =>
        curve.points.map(([tokens, value]) => ({
          name: `${curve.name}, T=${tokens.toLocaleString("en")}`,
          ...{ value, unit: "tokens/s" },
        })),
      ),
      table: { columns: ["T", "B", ...curves.map(({ name }) => `${name}, tokens/s`)], rows },
      notes: Object.fromEntries(curves.flatMap(({ name, ended }) => (ended ? [[`${name} ends`, ended]] : []))),
      failures,
      plot: {
        kind: "lines",
        title: "Throughput by context: 8 heads, d=64, p=2",
        x: "T, tokens of context",
        y: "tokens/s",
        series: Object.fromEntries(curves.map(({ name, points }) => [name, points])),
        ...{ logX: true, logY: true },
      },
    };
  },
};
