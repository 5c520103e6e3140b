import { parseArgs } from "node:util";
import { attentionKinds } from "./attention-kinds.js";
import { decoding } from "./decoding.js";
import { type Experiment, save, toMarkdown } from "./experiment.js";
import { gating } from "./gating.js";
import { pastTraining } from "./past-training.js";
import { recall } from "./recall.js";

const EXPERIMENTS: readonly Experiment[] = [attentionKinds, gating, recall, decoding, pastTraining];

const USAGE = `npm run experiment -- [names] [options]
${EXPERIMENTS.map(({ name, question }) => `  ${name.padEnd(18)} ${question}`).join("\n")}
  --data FOLDER   prepared text (default data/experiments); make it with:
                  power-attention prepare TEXT --out data/experiments --block 65536
  --out FOLDER    runs and results (default runs/experiments); stopped runs go on where they were
  --steps N       updates of each run, instead of the experiment's own number
  --seeds N       default 3
  --threads N     default: all cores
`;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    data: { type: "string", default: "data/experiments" },
    out: { type: "string", default: "runs/experiments" },
    steps: { type: "string" },
    seeds: { type: "string", default: "3" },
    threads: { type: "string", default: "0" },
    help: { type: "boolean" },
  },
});
const unknown = positionals.filter((name) => !EXPERIMENTS.some((e) => e.name === name));
if (values.help || unknown.length > 0) {
  process.stdout.write(unknown.length > 0 ? `no experiment ${unknown.join(", ")}\n\n${USAGE}` : USAGE);
  process.exit(unknown.length > 0 ? 1 : 0);
}
for (const experiment of EXPERIMENTS) {
  if (positionals.length > 0 && !positionals.includes(experiment.name)) continue;
  process.stderr.write(`${experiment.name}: ${experiment.question}\n`);
  const findings = await experiment.run({
    ...{ data: values.data, out: values.out },
    steps: values.steps === undefined ? undefined : Number(values.steps),
    ...{ seeds: Number(values.seeds), threads: Number(values.threads) },
  });
  save(experiment.name, findings, values.out);
  process.stdout.write(`${toMarkdown(findings)}\n`);
}
