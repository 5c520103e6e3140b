import { readFileSync } from "node:fs";
import { Command } from "commander";
import { copySession, generate, loadSession, readPrompt, SAMPLE_DEFAULTS, saveSession } from "../generate/index.js";
import { loadGPT } from "../models/index.js";
import { findCheckpoint } from "../train/checkpoint.js";
import { deviceFor } from "../train/device.js";
import { addDeviceOptions } from "./device.js";
import { numberOf, wholeOf } from "./options.js";
import { interruption } from "./train-command.js";

function readInput(path: string): string {
  try {
    return readFileSync(path === "-" ? 0 : path, "utf8");
  } catch (error) {
    throw new Error(
      `generate: cannot read the prompt from ${path} (${error instanceof Error ? error.message : error})`,
    );
  }
}

export function generateCommand(): Command {
  const collect = (text: string, before: string[]) => [...before, text];
  const command = new Command("generate")
    .description("Write text with a trained model. Text goes to standard output, everything else to standard error.")
    .argument("<checkpoint>", "a run folder or a checkpoint")
    .argument("[prompt]", "text to go on from; default: the start of a document")
    .option("--prompt-file <path>", 'read the prompt from a file, or from standard input with "-"')
    .option("--best", "the checkpoint of the lowest held-out loss instead of the last")
    .option("--max-tokens <number>", "tokens at most", wholeOf, 200)
    .option("--temperature <number>", "0 takes the likeliest token each time", numberOf, SAMPLE_DEFAULTS.temperature)
    .option("--top-k <number>", "only the k likeliest tokens (0: all)", wholeOf, SAMPLE_DEFAULTS.topK)
    .option(
      "--top-p <number>",
      "only the likeliest tokens of this probability together",
      numberOf,
      SAMPLE_DEFAULTS.topP,
    )
    .option("--repetition-penalty <number>", "1: none", numberOf, SAMPLE_DEFAULTS.repetitionPenalty)
    .option("--seed <number>", "of the sampling", wholeOf, 0)
    .option("--stop <text>", "end before this text; may be given several times", collect, [])
    .option("--stats", "times and counts as a line of JSON on standard error")
    .option("--save-state <file>", "save what the model carries after the prompt")
    .option("--load-state <file>", "go on from a saved state; the prompt comes after it");
  return addDeviceOptions(command).action(async (checkpoint: string, prompt: string | undefined, flags) => {
    if (prompt !== undefined && flags.promptFile !== undefined) {
      throw new Error("generate: give the prompt as an argument or as a file, not both");
    }
    const text = flags.promptFile === undefined ? (prompt ?? "") : readInput(flags.promptFile);
    const device = await deviceFor(flags);
    const folder = findCheckpoint(checkpoint, flags.best ? "best" : "last");
    const { model, tokenizer } = await loadGPT(folder, { device });
    let session = flags.loadState === undefined ? undefined : await loadSession(flags.loadState, model);
    const start = performance.now();
    let rest = text;
    if (flags.saveState !== undefined) {
      session = await readPrompt(model, tokenizer, text, session);
      await saveSession(flags.saveState, model, session);
      session = copySession(session);
      rest = "";
    }
    const before = (performance.now() - start) / 1000;
    const controller = interruption(() => {});
    const { maxTokens, temperature, topK, topP, repetitionPenalty, seed, stop } = flags;
    const options = { maxTokens, temperature, topK, topP, repetitionPenalty, seed, stop };
    const pieces = generate(model, tokenizer, { ...options, prompt: rest, session, signal: controller.signal });
    for (;;) {
      const next = await pieces.next();
      if (next.done) {
        process.stdout.write("\n");
        const stats = { ...next.value, timeToFirstToken: next.value.timeToFirstToken + before };
        if (flags.stats) console.error(JSON.stringify({ ...stats, device: device.description }));
        return;
      }
      process.stdout.write(next.value);
    }
  });
}
