import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { availableParallelism, cpus } from "node:os";
import { parseArgs } from "node:util";
import { accuracy } from "./accuracy.js";
import { chunkStateQuestion } from "./chunk-state.js";
import { Context, type Question } from "./context.js";
import { crossover } from "./crossover.js";
import { firstResult } from "./first-result.js";
import { forward } from "./forward.js";
import { forwardBackward } from "./forward-backward.js";
import { generation } from "./generation.js";
import { memory } from "./memory.js";
import { p4 } from "./p4.js";
import { peersQuestion } from "./peers-question.js";
import { perToken } from "./per-token.js";
import { compare, outcome, type Report, toMarkdown, toText } from "./report.js";
import { trainingPeers } from "./training-peers.js";
import { trainingStepQuestion } from "./training-step.js";

/** Correctness first: figures of wrong results are not worth having. */
const QUESTIONS: readonly Question[] = [
  accuracy,
  chunkStateQuestion,
  forward,
  forwardBackward,
  p4,
  peersQuestion,
  perToken,
  memory,
  firstResult,
  crossover,
  trainingStepQuestion,
  trainingPeers,
  generation,
];

const USAGE = `npm run bench -- [options]
  --only NAME        one question (may be repeated): ${QUESTIONS.map(({ name }) => name).join(", ")}
  --json FILE        also write the results as JSON (they go to standard output either way)
  --markdown FILE    also write them as a page
  --compare OLD.json say what changed against an earlier run; with --with NEW.json, without running anything
  --threads N        the most threads to use; default: the cores the system grants, at most 16
  --device wasm      the device to measure
  --quick            short sequences and few rounds: to see that it runs
`;

function commit(): string {
  try {
    const git = (...args: string[]) => execFileSync("git", args, { encoding: "utf8" }).trim();
    const changed = git("status", "--porcelain", "--untracked-files=no") === "" ? "" : " with changes";
    return git("rev-parse", "--short", "HEAD") + changed;
  } catch {
    return "unknown"; // not a git checkout
  }
}

function progress(line: string): void {
  process.stderr.write(`${line}\n`);
}

function chosen(names: readonly string[] | undefined): readonly Question[] {
  for (const name of names ?? []) {
    if (!QUESTIONS.some((question) => question.name === name)) {
      throw new RangeError(
        `bench: --only must name a question, got ${name}; there are ${QUESTIONS.map((q) => q.name)}`,
      );
    }
  }
  return names ? QUESTIONS.filter(({ name }) => names.includes(name)) : QUESTIONS;
}

async function measure(questions: readonly Question[], threads: number, quick: boolean): Promise<Report> {
  const context = new Context(quick, threads, progress);
  const report: Report = {
    date: new Date().toISOString(),
    commit: commit(),
    cpu: `${cpus()[0]?.model.trim() ?? "unknown CPU"} × ${availableParallelism()}`,
    node: process.versions.node,
    threads,
    device: (await context.device(threads)).description,
    quick,
    results: [],
  };
  for (const { name, question, target, run } of questions) {
    progress(`${name}: ${question}`);
    try {
      report.results.push({ name, question, target, ...(await run(context)) });
    } catch (error) {
      const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
      progress(`${name}: failed: ${text}`);
      report.results.push({ name, question, target, figures: [], error: text });
    }
  }
  await context.dispose();
  return report;
}

const { values: options } = parseArgs({
  options: {
    only: { type: "string", multiple: true },
    json: { type: "string" },
    markdown: { type: "string" },
    compare: { type: "string" },
    with: { type: "string" },
    threads: { type: "string" },
    device: { type: "string", default: "wasm" },
    quick: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

if (options.help) {
  process.stdout.write(USAGE);
} else {
  if (options.device !== "wasm") throw new RangeError(`bench: --device must be wasm, got ${options.device}`);
  const threads = Number(options.threads ?? Math.min(16, availableParallelism()));
  if (!Number.isInteger(threads) || threads < 1) {
    throw new RangeError(`bench: --threads must be a positive integer, got ${options.threads}`);
  }
  const read = (file: string) => JSON.parse(readFileSync(file, "utf8")) as Report;
  const before = options.compare === undefined ? undefined : read(options.compare);
  const report =
    options.with === undefined ? await measure(chosen(options.only), threads, options.quick) : read(options.with);
  const json = `${JSON.stringify(report, null, 2)}\n`;
  if (options.json !== undefined) writeFileSync(options.json, json);
  if (options.markdown !== undefined) writeFileSync(options.markdown, toMarkdown(report));
  if (before) process.stdout.write(compare(before, report));
  else {
    if (options.json === undefined) process.stdout.write(`${json}\n`);
    process.stdout.write(toText(report));
  }
  const wrong = report.results.filter(
    ({ error, figures }) =>
      error !== undefined || figures.some((figure) => figure.correctness && outcome(figure) === "missed"),
  );
  for (const { name, error } of wrong) progress(`${name}: ${error === undefined ? "wrong results" : "did not run"}`);
  if (wrong.length > 0) process.exitCode = 1;
}
