import { existsSync } from "node:fs";
import { parseArgs } from "node:util";
import { commit } from "../machine.js";
import { attentionKinds } from "./attention-kinds.js";
import { decoding } from "./decoding.js";
import type { Experiment, Job, JobRecord } from "./experiment.js";
import { gating } from "./gating.js";
import { runJob, runJobs, slotsOf } from "./jobs.js";
import { pastTraining } from "./past-training.js";
import { recall } from "./recall.js";
import { report, saveResults } from "./report.js";

const EXPERIMENTS: readonly Experiment[] = [attentionKinds, gating, recall, decoding, pastTraining];

const USAGE = `npm run experiment -- [names] [options]
${EXPERIMENTS.map(({ name, question }) => `  ${name.padEnd(18)} ${question}`).join("\n")}
  --data FOLDER   prepared text (default data/experiments); docs/results.md says how to prepare it
  --out FOLDER    runs and results (default runs/experiments); what is done is kept, what was stopped goes on
  --device KIND   auto (default), wasm or webgpu
  --jobs N        runs side by side, each a process (default 1); or kinds with numbers: wasm=12,webgpu=4
  --threads N     CPU threads of a run; default: all cores, or 1 side by side
  --steps N       updates of each run, instead of the experiment's own number
  --seeds N       default 3
  --commit TEXT   what to call the code where there is no git
  --report FOLDER only make tables and plots from the JSON files there, and put them into FOLDER.md
`;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    data: { type: "string", default: "data/experiments" },
    out: { type: "string", default: "runs/experiments" },
    device: { type: "string", default: "auto" },
    jobs: { type: "string", default: "1" },
    threads: { type: "string", default: "0" },
    steps: { type: "string" },
    seeds: { type: "string", default: "3" },
    commit: { type: "string" },
    report: { type: "string" },
    job: { type: "string" },
    help: { type: "boolean" },
  },
});

function whole(name: "threads" | "steps" | "seeds", least: number): number {
  const value = Number(values[name]);
  if (!Number.isInteger(value) || value < least) {
    throw new RangeError(`experiment: --${name} must be an integer of ${least} or more, got ${values[name]}`);
  }
  return value;
}

const threads = whole("threads", 0);
const sizes = { seeds: whole("seeds", 1), steps: values.steps === undefined ? undefined : whole("steps", 1) };
const { data, out } = values;

async function runAll(chosen: readonly Experiment[], code: string): Promise<boolean> {
  const parts = chosen.map((experiment) => ({ experiment, jobs: experiment.jobs(sizes), done: [] as JobRecord[] }));
  // Experiments may share a run.
  const named = new Map<string, Job>(parts.flatMap((part) => part.jobs.map((job) => [job.name, job])));
  // All experiments with one seed first: when time runs out, each has something to show.
  const jobs = [...named.values()].sort((a, b) => Number(a.settings.seed ?? 0) - Number(b.settings.seed ?? 0));
  const onDone = (record: JobRecord) => {
    for (const { experiment, jobs: own, done } of parts) {
      if (!own.some(({ name }) => name === record.name)) continue;
      done.push(record);
      const order = own.flatMap(({ name }) => done.find((r) => r.name === name) ?? []);
      saveResults(out, { experiment: experiment.name, planned: own.length, records: order });
      if (order.length === own.length) process.stderr.write(`${experiment.name}: complete\n`);
    }
  };
  const given = ["--data", data, "--out", out, "--seeds", String(sizes.seeds), "--commit", code];
  const args = sizes.steps === undefined ? given : [...given, "--steps", String(sizes.steps)];
  const slots = await slotsOf(values.jobs, values.device, threads);
  const alone = { device: slots[0].device, threads: slots[0].device === "wasm" ? threads : 0 };
  const failed = await runJobs(jobs, { slots, alone, out, args, onDone });
  for (const name of failed) process.stderr.write(`${name}: failed; run the same command again to go on\n`);
  return failed.length === 0;
}

async function main(): Promise<boolean> {
  const unknown = positionals.filter((name) => !EXPERIMENTS.some((e) => e.name === name));
  if (values.help || unknown.length > 0) {
    process.stdout.write(unknown.length > 0 ? `no experiment ${unknown.join(", ")}\n\n${USAGE}` : USAGE);
    return unknown.length === 0;
  }
  if (values.report !== undefined) {
    const found = await report(EXPERIMENTS, values.report);
    process.stdout.write(`${values.report}: ${found.length > 0 ? found.join(", ") : "no results"}\n`);
    return found.length > 0;
  }
  if (values.job !== undefined) {
    const job = EXPERIMENTS.flatMap((e) => e.jobs(sizes)).find(({ name }) => name === values.job);
    if (!job) throw new RangeError(`experiment: no job ${values.job}`);
    const [slot] = await slotsOf("1", values.device, threads);
    await runJob(job, out, commit(values.commit), { data, ...slot });
    return true;
  }
  const chosen = EXPERIMENTS.filter(({ name }) => positionals.length === 0 || positionals.includes(name));
  const onText = chosen.some((e) => e.jobs(sizes).some(({ name }) => name.startsWith("text-")));
  if (onText && !existsSync(data)) {
    throw new Error(`experiment: no prepared text in ${data}; docs/results.md says how to make it, --data where it is`);
  }
  const fine = await runAll(chosen, commit(values.commit));
  try {
    await report(chosen, out);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ERR_MODULE_NOT_FOUND") throw error;
    process.stderr.write(`no plots: ${(error as Error).message}; make them elsewhere with --report ${out}\n`);
  }
  return fine;
}

try {
  if (!(await main())) process.exitCode = 1;
} catch (error) {
  process.stderr.write(`error: ${error instanceof Error ? error.message : error}\n`);
  process.exitCode = 1;
}
