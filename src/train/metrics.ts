import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { writeFileWhole } from "../data/whole-file.js";

export interface StepMetric {
  kind: "step";
  /** Updates done, this one included. */
  step: number;
  /** Trained on so far. */
  tokens: number;
  /** Nats per token over the step's batch. */
  loss: number;
  learningRate: number;
  /** Global norm before clipping. */
  gradientNorm: number;
  tokensPerSecond: number;
  /** Bytes the device holds at most. */
  memory: number;
}

export interface EvalMetric {
  kind: "eval";
  step: number;
  tokens: number;
  /** Nats per token of held-out text. */
  loss: number;
}

export interface SampleMetric {
  kind: "sample";
  step: number;
  tokens: number;
  text: string;
}

export type Metric = StepMetric | EvalMetric | SampleMetric;

/** One JSON object a line, appended as the run goes. A last line that a crash cut off is left out. */
export class MetricsFile {
  readonly #metrics: Metric[] = [];

  /** @param step keep what was measured up to this step; a resumed run measures the rest again */
  constructor(
    readonly path: string,
    step: number,
  ) {
    if (step > 0 && existsSync(path)) this.#metrics = readMetrics(path).filter((m) => m.step <= step);
    writeFileWhole(path, this.#metrics.map((m) => `${JSON.stringify(m)}\n`).join(""));
  }

  get all(): readonly Metric[] {
    return this.#metrics;
  }

  add(metric: Metric): void {
    this.#metrics.push(metric);
    appendFileSync(this.path, `${JSON.stringify(metric)}\n`);
  }
}

export function readMetrics(path: string): Metric[] {
  const metrics: Metric[] = [];
  for (const line of readFileSync(path, "utf8").split("\n")) {
    try {
      metrics.push(JSON.parse(line));
    } catch {
      break; // the end, or half a line
    }
  }
  return metrics;
}
