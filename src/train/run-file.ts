import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { hasCheckpoint } from "./checkpoint.js";
import { type TrainConfig, trainConfig } from "./config.js";

/** config.json of a run folder. */
export interface RunFile {
  version: 1;
  data: string;
  train: TrainConfig;
}

function readRun(out: string): RunFile {
  const path = join(out, "config.json");
  try {
    const run: RunFile = JSON.parse(readFileSync(path, "utf8"));
    return { ...run, train: trainConfig(run.train) };
  } catch (error) {
    throw new Error(`train: cannot resume from ${out}: ${error instanceof Error ? error.message : error}`);
  }
}

/** What of `TrainOptions` decides the configuration. */
interface RunRequest {
  data?: string;
  out: string;
  config?: Partial<TrainConfig>;
  resume?: boolean;
}

/** The configuration to run with, and where its data are. */
export function planRun({ out, data, config = {}, resume }: RunRequest): RunFile {
  if (!resume) {
    if (data === undefined) throw new TypeError("train: data must be the folder that prepare wrote");
    if (hasCheckpoint(out)) {
      throw new Error(`train: ${out} already holds a run; resume it, or name another folder`);
    }
    return { version: 1, data: resolve(data), train: trainConfig(config) };
  }
  const run = readRun(out);
  const { steps = run.train.steps, ...others } = config;
  for (const [name, value] of Object.entries(others)) {
    if (value !== run.train[name as keyof TrainConfig]) {
      throw new RangeError(
        `train: a resumed run keeps its ${name} of ${run.train[name as keyof TrainConfig]}, got ${value}; only steps may change`,
      );
    }
  }
  return { ...run, data: data === undefined ? run.data : resolve(data), train: trainConfig({ ...run.train, steps }) };
}
