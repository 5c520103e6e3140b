import { attempt, type Context, type Figure, type Question, type Result } from "../context.js";
import { gpuShape, type PowerTime, powerTable, timeFigures, timePower, unlessQuick, withCommas } from "./power.js";

const LENGTHS = [65536, 16384, 4096];

/** The main problem at three lengths with the same number of tokens in all; the first is what the targets are for. */
export async function timeLengths(
  context: Context,
  backward: boolean,
  target: Pick<Figure, "atMost" | "aim">,
): Promise<Result> {
  const failures: string[] = [];
  const times: PowerTime[] = [];
  const figures: Figure[] = [];
  for (const length of LENGTHS) {
    const shape = gpuShape(context, length);
    const name = `T=${withCommas(shape.tokens)}`;
    const time = await attempt(failures, name, () => timePower(context, { name, shape, backward }));
    if (!time) continue;
    times.push(time);
    figures.push(...timeFigures(time, length === LENGTHS[0] ? unlessQuick(context, target) : {}));
    if (length === LENGTHS[0] || times[0].name === name) continue;
    const value = 100 * (time.ms / times[0].ms - 1);
    figures.push({
      name: `${name} against ${times[0].name}`,
      value,
      unit: "%",
      ...unlessQuick(context, { atMost: 10 }),
    });
  }
  const { tokens: _, batch: __, ...rest } = gpuShape(context, LENGTHS[0]);
  return { figures, ...powerTable(times), failures, notes: { dtype: "bf16", ...rest } };
}

export const gpuForward: Question = {
  name: "gpu-forward",
  question: "How long does a forward pass take? (65,536 tokens in all, 8 heads, d=64, p=2, gated, bf16)",
  target: "2.9 ms at T=65,536, aim 1.6; T=4,096 and 16,384 within 10 % of it",
  on: ["webgpu"],
  run: (context) => timeLengths(context, false, { atMost: 2.9, aim: 1.6 }),
};
