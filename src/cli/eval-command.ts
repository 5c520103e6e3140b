import { statSync } from "node:fs";
import { join } from "node:path";
import { Command } from "commander";
import { TokenFile } from "../data/index.js";
import { evaluate } from "../eval/index.js";
import { loadGPT } from "../models/index.js";
import { findCheckpoint } from "../train/checkpoint.js";
import { deviceFor } from "../train/device.js";
import { addDeviceOptions } from "./device.js";
import { numberOf, wholeOf } from "./options.js";

/** Mean losses of a dozen spans of positions, each twice as long as the one before. */
function spans(byPosition: Float64Array): { from: number; to: number; loss: number }[] {
  const out: { from: number; to: number; loss: number }[] = [];
  for (let from = 0; from < byPosition.length; ) {
    const to = Math.min(byPosition.length, Math.max(from + 1, 2 * from));
    const part = byPosition.subarray(from, to);
    out.push({ from, to: to - 1, loss: part.reduce((a, b) => a + b, 0) / part.length });
    from = to;
  }
  return out;
}

export function evalCommand(): Command {
  const command = new Command("eval")
    .description("Loss and perplexity of a model on a token file, also by position in the context.")
    .argument("<checkpoint>", "a run folder or a checkpoint")
    .argument("<tokens>", "a token file, or the folder that prepare wrote (its held-out part)")
    .option("--best", "the checkpoint of the lowest held-out loss instead of the last")
    .option("--context-length <number>", "tokens of a window (default: as trained)", wholeOf)
    .option("--batch-size <number>", "windows at a time", wholeOf, 8)
    .option("--batches <number>", "batches at most (default: the whole file)", numberOf)
    .option("--json", "everything as JSON, the loss at each position too");
  return addDeviceOptions(command).action(async (checkpoint: string, tokens: string, flags) => {
    const folder = statSync(tokens, { throwIfNoEntry: false })?.isDirectory() ?? false;
    using file = TokenFile.open(folder ? join(tokens, "val.bin") : tokens);
    const device = await deviceFor(flags);
    const { model } = await loadGPT(findCheckpoint(checkpoint, flags.best ? "best" : "last"), { device });
    const { contextLength, batchSize, batches } = flags;
    const result = await evaluate(model, file, { contextLength, batchSize, batches });
    if (flags.json) {
      console.log(JSON.stringify({ ...result, byPosition: [...result.byPosition] }));
      return;
    }
    console.log(`loss ${result.loss.toFixed(4)} nats per token, perplexity ${result.perplexity.toFixed(2)}`);
    console.log(`over ${result.tokens.toLocaleString("en")} tokens of ${file.path}, on ${device.description}`);
    for (const { from, to, loss } of spans(result.byPosition)) {
      console.log(`  position ${from === to ? from : `${from}–${to}`}: ${loss.toFixed(4)}`);
    }
  });
}
