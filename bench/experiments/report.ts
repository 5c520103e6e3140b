import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { type Experiment, type Findings, type JobRecord, shown } from "./experiment.js";

/** NAME.json in a folder of results: all that was measured, from which tables and plots are made. */
export interface ResultsFile {
  experiment: string;
  /** Jobs that the experiment consists of; with fewer records it is not complete. */
  planned: number;
  records: JobRecord[];
}

function table({ columns, rows }: Findings): string[] {
  const line = (cells: (string | number)[]) => `| ${cells.map(shown).join(" | ")} |`;
  return [line(columns), line(columns.map(() => "---")), ...rows.map(line)];
}

/** What was run where, one line for each machine, device and commit. */
function provenance({ records, planned }: ResultsFile): string[] {
  const places = new Map<string, JobRecord[]>();
  for (const record of records) {
    const { device, machine, node, commit } = record;
    const place = `${device}; ${machine}; Node ${node}; commit ${commit}`;
    places.set(place, [...(places.get(place) ?? []), record]);
  }
  const common = Object.entries(records[0].settings).filter(([name, value]) =>
    records.every(({ settings }) => settings[name] === value),
  );
  const lines = [...places].map(([place, list]) => {
    const minutes = list.reduce((sum, { seconds }) => sum + seconds, 0) / 60;
    const days = [...new Set(list.map(({ date }) => date.slice(0, 10)))].sort().join(", ");
    return `${list.length} ${list.length === 1 ? "run" : "runs"}, ${minutes.toFixed(1)} minutes of computing: ${place}; ${days}.`;
  });
  if (records.length < planned) lines.unshift(`**Not complete: ${records.length} of ${planned} runs.**`);
  lines.push(
    `Common to all: ${common.map(([name, value]) => `${name} ${shown(typeof value === "number" ? value : String(value))}`).join(", ")}.`,
  );
  return lines;
}

/** An experiment's table, plot, what is seen and how it was measured. */
export function toMarkdown(findings: Findings, results: ResultsFile, plot: string): string {
  return [
    ...table(findings),
    "",
    `![${findings.title}](${plot})`,
    "",
    ...findings.seen.map((line) => `- ${line}`),
    "",
    "Measured:",
    "",
    ...provenance(results).map((line) => `- ${line}`),
    "",
  ].join("\n");
}

/** Keeps what was measured so far, a line for each run. */
export function saveResults(folder: string, { experiment, planned, records }: ResultsFile): void {
  mkdirSync(folder, { recursive: true });
  const lines = records.map((record) => `  ${JSON.stringify(record)}`).join(",\n");
  const text = `{ "experiment": "${experiment}", "planned": ${planned}, "records": [\n${lines}\n] }\n`;
  writeFileSync(join(folder, `${experiment}.json`), text);
}

/** The page with the part between <!-- NAME --> and <!-- end NAME --> replaced. */
export function replaced(page: string, name: string, part: string): string {
  const [start, end] = [`<!-- ${name} -->`, `<!-- end ${name} -->`];
  const [from, to] = [page.indexOf(start), page.indexOf(end)];
  if (from < 0 || to < from) {
    throw new Error(`experiment: the page needs a line ${start} and one ${end} after it, for what is put between them`);
  }
  return `${page.slice(0, from)}${start}\n\n${part}\n${page.slice(to)}`;
}

/**
 * Draws NAME.svg from each NAME.json in a folder of results, and writes its table into the page FOLDER.md, or into
 * NAME.md where there is no such page. Returns the names of what was found.
 */
export async function report(experiments: readonly Experiment[], folder: string): Promise<string[]> {
  const { linePlot } = await import("../plot.js"); // the drawing library is for development only
  const found: string[] = [];
  const page = `${folder.replace(/\/+$/, "")}.md`;
  for (const experiment of experiments) {
    const { name } = experiment;
    const path = join(folder, `${name}.json`);
    if (!existsSync(path)) continue;
    const results: ResultsFile = JSON.parse(readFileSync(path, "utf8"));
    const findings = experiment.findings(results.records);
    const { title, series, axes } = findings;
    writeFileSync(join(folder, `${name}.svg`), linePlot({ title, series, ...axes }));
    if (existsSync(page)) {
      const part = toMarkdown(findings, results, `${basename(folder)}/${name}.svg`);
      writeFileSync(page, replaced(readFileSync(page, "utf8"), name, part));
    } else {
      writeFileSync(join(folder, `${name}.md`), `## ${title}\n\n${toMarkdown(findings, results, `${name}.svg`)}`);
    }
    found.push(name);
  }
  return found;
}
