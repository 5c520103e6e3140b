import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export interface ExperimentOptions {
  /** Prepared text, for experiments on text. */
  data: string;
  /** Where runs and results go. */
  out: string;
  /** Updates of each run; experiments have a default of their own. */
  steps?: number;
  seeds: number;
  threads: number;
}

/** A claim and the numbers for it; rows are strings and numbers in the order of columns. */
export interface Findings {
  title: string;
  columns: string[];
  rows: (string | number)[][];
  /** Lines to plot, by name. */
  series: Record<string, [number, number][]>;
  axes: { x: string; y: string; logX?: boolean };
  /** Sizes and settings, for people. */
  notes: Record<string, unknown>;
}

export interface Experiment {
  name: string;
  question: string;
  run(options: ExperimentOptions): Promise<Findings>;
}

const shown = (value: string | number) =>
  typeof value === "string" || Number.isInteger(value) ? String(value) : value.toFixed(3);

export function toMarkdown({ title, columns, rows }: Findings): string {
  const line = (cells: (string | number)[]) => `| ${cells.map(shown).join(" | ")} |`;
  return [`## ${title}`, "", line(columns), line(columns.map(() => "---")), ...rows.map(line), ""].join("\n");
}

/** NAME.json and NAME.md in the results folder. */
export function save(name: string, findings: Findings, out: string): void {
  mkdirSync(out, { recursive: true });
  writeFileSync(join(out, `${name}.json`), `${JSON.stringify(findings, undefined, 1)}\n`);
  writeFileSync(join(out, `${name}.md`), toMarkdown(findings));
}

export const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;

export function deviation(values: readonly number[]): number {
  const center = mean(values);
  return Math.sqrt(mean(values.map((x) => (x - center) ** 2)));
}
