#!/usr/bin/env node
import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Command } from "commander";
import { prepare, TokenFile } from "../data/index.js";
import { bigramLoss } from "../eval/index.js";
import { generateText } from "../generate/index.js";
import { loadGPT } from "../models/index.js";
import { deviceFor } from "../train/device.js";
import { findCheckpoint, hasCheckpoint, measureStep, type TrainConfig, train } from "../train/index.js";
import { addDeviceOptions } from "./device.js";
import { explain } from "./explain.js";
import { numberOf, wholeOf } from "./options.js";
import { TrainProgress } from "./progress.js";
import { interruption } from "./train-command.js";

const EXTENSIONS = [".md", ".d.ts"];
const FOLDER = join("runs", "start");

/** The model of about a million parameters that `npm start` trains: gated power attention of degree 2. */
const MODEL: Partial<TrainConfig> = {
  ...{ size: "1M", attention: "power", degree: 2, contextLength: 256, batchSize: 4 },
  ...{ learningRate: 0.004, minLearningRate: 0.0004, weightDecay: 0.1, evalBatches: 4 },
};

/** Updates after which the loss is well below a bigram model's; a slow machine takes the time for them. */
const LEAST_STEPS = 300;

const list = (text: string) => text.split(",").filter((item) => item !== "");

const program = new Command("npm start --")
  .description(
    "Trains a small language model on text that every installation has (the documentation and type declarations in " +
      "node_modules), or on yours, shows what it learned against a bigram model, and lets it write.",
  )
  .argument("[text...]", "text files and folders of your own", ["node_modules"])
  .option("--extensions <list>", "files that count in folders, comma-separated", list, EXTENSIONS)
  .option("--max-megabytes <number>", "stop reading after this much text", numberOf, 16)
  .option("--minutes <number>", "how long to train, about", numberOf, 2.5)
  .option("--steps <number>", "how many updates to train instead", wholeOf)
  .option("--out <folder>", "where tokens and the run go", FOLDER)
  .option("--prompt <text>", "what the trained model goes on from", "The ")
  .option("--tokens <number>", "how much it writes at the end", wholeOf, 400)
  .addHelpText(
    "after",
    "\nExamples:\n  npm start -- ~/notes --extensions .txt,.md\n  npm start -- shakespeare.txt --minutes 10 --out runs/shakespeare",
  );

addDeviceOptions(program);

async function main(): Promise<void> {
  program.parse();
  const flags = program.opts();
  const out: string = flags.out;
  const [data, run] = [join(out, "tokens"), join(out, "run")];
  // With npm start the working folder is the package's; elsewhere node_modules may be above it.
  const sources = program.processedArgs[0].map((source: string) =>
    source === "node_modules" && !existsSync(source)
      ? fileURLToPath(new URL("../../../node_modules", import.meta.url))
      : source,
  );

  console.log(`1. Preparing text from ${sources.join(", ")} (${flags.extensions.join(", ")})`);
  const prepared = await prepare({
    ...{ sources, out: data, extensions: flags.extensions, maxBytes: flags.maxMegabytes * 2 ** 20 },
  });
  const number = (n: number) => n.toLocaleString("en");
  console.log(
    `   ${number(prepared.documents)} documents, ${number(prepared.train.tokens)} bytes to train on, ${number(prepared.val.tokens)} held out`,
  );
  using trainFile = TokenFile.open(prepared.train.path);
  using valFile = TokenFile.open(prepared.val.path);
  const baseline = bigramLoss(trainFile, valFile);
  console.log(`   a bigram model of this text has a held-out loss of ${baseline.toFixed(3)} nats per byte`);

  const base = { ...MODEL, device: flags.device as string, threads: flags.threads as number };
  const seconds = flags.steps === undefined ? await measureStep(base, trainFile) : 0;
  const wanted = (60 * flags.minutes) / seconds;
  const steps: number = flags.steps ?? Math.max(LEAST_STEPS, Math.round(wanted / 10) * 10);
  const every = Math.max(1, Math.round(steps / 10));
  const config = {
    ...base,
    ...{ steps, warmup: Math.min(50, Math.ceil(steps / 5)), evalEvery: every, saveEvery: every },
    sampleEvery: Math.max(1, Math.round(steps / 3)),
    sampleTokens: Math.min(flags.tokens, 160),
  };
  console.log(`2. Training for ${number(steps)} updates`);
  if (hasCheckpoint(run)) rmSync(run, { recursive: true });
  const progress = new TrainProgress(process.stdout);
  const controller = interruption(() => console.error("\nfinishing the step, then saving; once more to stop at once"));
  const result = await train({
    ...{ data, out: run, config, signal: controller.signal },
    onStart: (start) => progress.start(start),
    onMetric: (metric) => progress.metric(metric),
  }).finally(() => progress.end());
  if (result.stopped === "aborted") {
    console.log(`stopped after step ${result.step}; resume: npx power-attention train --resume ${run}`);
    return;
  }
  const loss = result.heldOutLoss!;
  const verdict = loss < baseline ? `${((1 - loss / baseline) * 100).toFixed(0)} % below` : "not yet below";
  console.log(
    `   held-out loss ${loss.toFixed(3)} nats per byte, ${verdict} the bigram model's ${baseline.toFixed(3)}`,
  );
  console.log(`   report: ${result.report}`);

  console.log(`3. Writing on from ${JSON.stringify(flags.prompt)}`);
  const device = await deviceFor(config);
  const { model, tokenizer } = await loadGPT(findCheckpoint(run, "best"), { device });
  const { text, stats } = await generateText(model, tokenizer, {
    prompt: flags.prompt,
    maxTokens: flags.tokens,
    seed: 1,
  });
  console.log(`\n${flags.prompt}${text}\n`);
  console.log(
    `   ${Math.round(stats.tokensPerSecond)} tokens/s, ${number(stats.stateBytes)} bytes of state whatever the length`,
  );
  console.log("\nNext:");
  console.log(`  npx power-attention generate ${run} "export interface " --temperature 0.5`);
  console.log(`  npx power-attention eval ${run} ${data}`);
  console.log("  npm start -- path/to/your/text --minutes 10 --out runs/mine");
}

try {
  await main();
} catch (error) {
  console.error(`error: ${explain(error)}`);
  process.exitCode = 1;
}
