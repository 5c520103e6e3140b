import { Command } from "commander";
import { train } from "../train/index.js";
import { addTrainOptions, trainOptions } from "./options.js";
import { TrainProgress } from "./progress.js";

/** Aborts at the first Ctrl-C or termination request; at the second the process ends as it would have. */
export function interruption(onFirst: () => void): AbortController {
  const controller = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.once(signal, () => {
      if (!controller.signal.aborted) onFirst();
      controller.abort();
    });
  }
  return controller;
}

export function trainCommand(): Command {
  const command = new Command("train")
    .description("Train a GPT on token files. The run folder gets checkpoints, metrics.jsonl and report.html.")
    .argument("[data]", "the folder that prepare wrote")
    .option("-o, --out <folder>", "run folder of a new run")
    .option("-r, --resume <folder>", "go on with a run from its last checkpoint")
    .option("-c, --config <file>", "JSON file of training options; flags win over it");
  return addTrainOptions(command).action(async (data: string | undefined, flags) => {
    const out = flags.resume ?? flags.out;
    if (out === undefined) throw new Error("train: name a folder for the run: --out runs/first");
    if (flags.resume === undefined && data === undefined) {
      throw new Error("train: name the folder that prepare wrote: power-attention train data --out runs/first");
    }
    const progress = new TrainProgress(process.stdout);
    const controller = interruption(() =>
      console.error("\nfinishing the step, then saving; once more to stop at once"),
    );
    try {
      const result = await train({
        data,
        out,
        config: trainOptions(flags, flags.config),
        resume: flags.resume !== undefined,
        signal: controller.signal,
        onStart: (start) => progress.start(start),
        onMetric: (metric) => progress.metric(metric),
      });
      progress.end();
      const loss = result.heldOutLoss === null ? "" : `, held-out loss ${result.heldOutLoss.toFixed(4)}`;
      console.log(`${result.stopped} after step ${result.step}${loss}`);
      console.log(`checkpoint: ${result.checkpoint}`);
      console.log(`report: ${result.report}`);
      if (result.stopped === "aborted") console.log(`resume: power-attention train --resume ${out}`);
      else console.log(`next: power-attention generate ${out} "Once upon a time"`);
    } finally {
      progress.end();
    }
  });
}
