import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join, relative } from "node:path";
import { parseArgs } from "node:util";
import { defaultDevice } from "../src/devices/get-device.js";
import { accuracy } from "./accuracy.js";
import { chunkStateQuestion } from "./chunk-state.js";
import { Context, type Question, type Runs } from "./context.js";
import { crossover } from "./crossover.js";
import { firstResult } from "./first-result.js";
import { forward } from "./forward.js";
import { forwardBackward } from "./forward-backward.js";
import { generation } from "./generation.js";
import { gpuAccuracy } from "./gpu/accuracy.js";
import { gpuDecoding } from "./gpu/decoding.js";
import { gpuFirstResult } from "./gpu/first-result.js";
import { gpuForward } from "./gpu/forward.js";
import { gpuForwardBackward } from "./gpu/forward-backward.js";
import { gpuMatmul } from "./gpu/matmul.js";
import { gpuP4 } from "./gpu/p4.js";
import { gpuParts } from "./gpu/parts.js";
import { gpuPortable } from "./gpu/portable.js";
import { gpuShapes } from "./gpu/shapes.js";
import { gpuSoftmax } from "./gpu/softmax.js";
import { gpuTraining } from "./gpu/training.js";
import { commit, cpuName, describeGpu, versions } from "./machine.js";
import { memory } from "./memory.js";
import { p4 } from "./p4.js";
import { peersQuestion } from "./peers-question.js";
import { perToken } from "./per-token.js";
import { compare, merge, outcome, type Report, toMarkdown, toText } from "./report.js";
import { singleProblem } from "./single-problem.js";
import { throughputByContext } from "./throughput-by-context.js";
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
  gpuAccuracy,
  gpuForward,
  gpuForwardBackward,
  gpuShapes,
  gpuMatmul,
  gpuParts,
  gpuPortable,
  gpuSoftmax,
  gpuP4,
  gpuFirstResult,
  gpuTraining,
  gpuDecoding,
  singleProblem,
  throughputByContext,
];

const runsOn = ({ on = ["wasm"] }: Question, kind: Runs) => on.includes(kind);
const namesOn = (kind: Runs) => QUESTIONS.filter((question) => runsOn(question, kind)).map(({ name }) => name);

const USAGE = `npm run bench -- [options]
  --device KIND      wasm (default), webgpu, or auto: webgpu where there is a GPU
  --only NAME        one question (may be repeated)
                       on wasm: ${namesOn("wasm").join(", ")}
                       on webgpu: ${namesOn("webgpu").join(", ")}
  --json FILE        also write the results as JSON, after each question (they go to standard output either way)
  --markdown FILE    also write them as a page
  --svg FOLDER       also write the plots, one file each
  --compare OLD.json say what changed against an earlier run
  --with NEW.json    the results of a file instead of running anything (may be repeated: they are joined)
  --profile          also print the GPU's time by kernel
  --threads N        the most threads to use; default: the cores the system grants, at most 16
  --chunk-size N     of power attention in the questions to a GPU; default: the library's choice
  --unchecked        without the bounds checks of the GPU's driver
  --commit ID        what to call the version; default: git's
  --quick            short sequences and few rounds: to see that it runs
`;

function progress(line: string): void {
  process.stderr.write(`${line}\n`);
}

function chosen(names: readonly string[] | undefined, kind: Runs): readonly Question[] {
  for (const name of names ?? []) {
    const question = QUESTIONS.find((one) => one.name === name);
    if (!question) {
      throw new RangeError(`bench: --only must name a question, got ${name}; there are ${namesOn(kind).join(", ")}`);
    }
    if (!runsOn(question, kind)) {
      throw new RangeError(`bench: ${name} can't be asked on ${kind}; pass --device ${(question.on ?? ["wasm"])[0]}`);
    }
  }
  return QUESTIONS.filter((question) => (names ? names.includes(question.name) : runsOn(question, kind)));
}

async function measure(questions: readonly Question[], context: Context, version: string, json?: string) {
  const { kind, threads, quick } = context;
  const report: Report = {
    date: new Date().toISOString(),
    commit: version,
    cpu: cpuName(),
    node: process.versions.node,
    threads,
    device: (await context.main()).description,
    ...(kind === "webgpu" ? { gpu: describeGpu(await context.gpu(), context.boundsChecks) } : {}),
    versions: versions(kind === "webgpu"),
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
    context.releaseGpus();
    // What is measured so far outlives a driver that takes the process down, or a time limit from outside.
    if (json !== undefined) writeFileSync(json, `${JSON.stringify(report, null, 2)}\n`);
  }
  await context.dispose();
  return report;
}

const { values: options } = parseArgs({
  options: {
    only: { type: "string", multiple: true },
    json: { type: "string" },
    markdown: { type: "string" },
    svg: { type: "string" },
    compare: { type: "string" },
    with: { type: "string", multiple: true },
    profile: { type: "boolean", default: false },
    threads: { type: "string" },
    device: { type: "string", default: "wasm" },
    "chunk-size": { type: "string" },
    commit: { type: "string" },
    unchecked: { type: "boolean", default: false },
    quick: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

function positive(name: string, given: string | undefined): number | undefined {
  const value = Number(given);
  if (given !== undefined && (!Number.isInteger(value) || value < 1)) {
    throw new RangeError(`bench: --${name} must be a positive integer, got ${given}; leave it out for the default`);
  }
  return given === undefined ? undefined : value;
}

async function deviceKind(asked: string): Promise<Runs> {
  if (asked === "wasm" || asked === "webgpu") return asked;
  if (asked === "auto") return (await defaultDevice()).kind === "webgpu" ? "webgpu" : "wasm";
  throw new RangeError(`bench: --device must be wasm, webgpu or auto, got ${asked}`);
}

const read = (file: string) => JSON.parse(readFileSync(file, "utf8")) as Report;

async function makeReport(): Promise<Report> {
  if (options.with) return merge(options.with.map(read));
  const kind = await deviceKind(options.device);
  const context = new Context({
    quick: options.quick,
    threads: positive("threads", options.threads) ?? Math.min(16, availableParallelism()),
    kind,
    chunkSize: positive("chunk-size", options["chunk-size"]),
    boundsChecks: options.unchecked ? false : undefined,
    progress,
  });
  return measure(chosen(options.only, kind), context, commit(options.commit), options.json);
}

if (options.help) {
  process.stdout.write(USAGE);
} else {
  const before = options.compare === undefined ? undefined : read(options.compare);
  const report = await makeReport();
  const json = `${JSON.stringify(report, null, 2)}\n`;
  const { svg, markdown } = options;
  if (options.json !== undefined) writeFileSync(options.json, json);
  if (markdown !== undefined) {
    const picture = svg === undefined ? undefined : (name: string) => `${relative(dirname(markdown), svg)}/${name}.svg`;
    writeFileSync(markdown, toMarkdown(report, picture));
  }
  if (svg !== undefined) {
    const { draw } = await import("./draw.js"); // brings a plotting library, which no measurement needs
    mkdirSync(svg, { recursive: true });
    for (const { name, plot } of report.results) {
      if (plot) writeFileSync(join(svg, `${name}.svg`), draw(plot, report));
    }
  }
  if (before) process.stdout.write(compare(before, report));
  else {
    if (options.json === undefined) process.stdout.write(`${json}\n`);
    process.stdout.write(toText(report, { profile: options.profile }));
  }
  const wrong = report.results.filter(
    ({ error, failures = [], figures }) =>
      error !== undefined ||
      failures.length > 0 ||
      figures.some((figure) => figure.correctness && outcome(figure) === "missed"),
  );
  for (const { name, error, failures = [] } of wrong) {
    progress(`${name}: ${error === undefined && failures.length === 0 ? "wrong results" : "did not run"}`);
  }
  if (wrong.length > 0) process.exitCode = 1;
}
