import type { WasmDevice } from "../src/devices/wasm/device.js";
import { backwardOperations, forwardOperations, type Shape } from "./arithmetic.js";
import { type Context, makeInputs, powerTask, type Result } from "./context.js";
import { interleave, type Task, type Timing } from "./measure.js";
import { peakProbe } from "./probe.js";

/** GFLOP/s. */
export function rate(operations: number, milliseconds: number): number {
  return operations / milliseconds / 1e6;
}

/**
 * The peak that a rate is held to is the fastest run of the probe, the rate itself the median of its runs: a busy
 * machine makes the share look worse, never better.
 */
export function shareOfPeak(operations: number, time: Timing, probeOperations: number, probe: Timing): number {
  return (100 * rate(operations, time.median)) / rate(probeOperations, probe.fastest);
}

/** powerFull by its own arithmetic against the probe on one thread, and one thread against all. */
export async function powerShare(
  context: Context,
  shape: Shape,
  backward: boolean,
  targets: { share: number; threads?: number },
): Promise<Result> {
  const single = await context.device(1);
  const many = context.threads > 1 && targets.threads !== undefined ? await context.device(context.threads) : undefined;
  const choice = { degree: shape.degree, chunkSize: shape.chunkSize };
  const inputs = makeInputs(single, shape, backward);
  const probe = peakProbe(single as WasmDevice);
  const manyInputs = many && makeInputs(many, shape, backward);
  const tasks: Record<string, Task> = { probe: probe.run, one: powerTask(inputs, choice, backward) };
  if (manyInputs) tasks.many = powerTask(manyInputs, choice, backward);
  const times = await interleave(tasks, context.rounds);
  inputs.dispose();
  manyInputs?.dispose();
  const operations = forwardOperations(shape) + (backward ? backwardOperations(shape) : 0);
  const result: Result = {
    figures: [
      {
        name: "share of peak, one thread",
        value: shareOfPeak(operations, times.one, probe.operations, times.probe),
        unit: "%",
        atLeast: targets.share,
        spread: times.one.spread,
      },
      { name: "one thread", value: rate(operations, times.one.median), unit: "GFLOP/s" },
      { name: "peak", value: rate(probe.operations, times.probe.fastest), unit: "GFLOP/s", spread: times.probe.spread },
      { name: "time, one thread", value: times.one.median, unit: "ms", spread: times.one.spread },
    ],
    notes: { ...shape, probe: probe.form },
  };
  if (manyInputs) {
    const manyTime = times.many;
    result.figures.push(
      {
        name: `${context.threads} threads against one`,
        value: times.one.median / manyTime.median,
        unit: "×",
        atLeast: context.threads === 2 ? targets.threads : undefined,
        spread: manyTime.spread,
      },
      { name: `time, ${context.threads} threads`, value: manyTime.median, unit: "ms", spread: manyTime.spread },
    );
  }
  return result;
}
