import { existsSync } from "node:fs";
import { join } from "node:path";
import { type Metric, readMetrics, type TrainConfig, train } from "../../src/train/index.js";
import type { ExperimentOptions } from "./experiment.js";

/** Trains, or goes on with a run that was stopped, or takes one that is done. Returns what was measured. */
export async function trained(
  { data, out, threads }: ExperimentOptions,
  name: string,
  config: Partial<TrainConfig>,
): Promise<{ folder: string; metrics: Metric[] }> {
  const folder = join(out, "runs", name);
  const resume = existsSync(join(folder, "checkpoints", "index.json"));
  const started = Date.now();
  const result = await train({
    ...{ data, out: folder, resume },
    config: resume ? {} : { threads, sampleTokens: 0, evalBatches: 16, ...config },
  });
  process.stderr.write(`${name}: ${result.step} steps, ${((Date.now() - started) / 1000).toFixed(0)} s\n`);
  return { folder, metrics: readMetrics(join(folder, "metrics.jsonl")) };
}
