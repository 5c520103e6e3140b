import type { Figure, Result } from "./context.js";

/** What a run writes to JSON, and what `--compare` reads back. */
export interface Report {
  date: string;
  commit: string;
  cpu: string;
  node: string;
  threads: number;
  device: string;
  quick: boolean;
  results: (Result & { name: string; question: string; target: string; error?: string })[];
}

export function outcome(figure: Figure): "" | "met" | "missed" {
  const { value, atLeast, atMost } = figure;
  if (atLeast === undefined && atMost === undefined) return "";
  // Written so that a NaN is missed.
  return (atLeast === undefined || value >= atLeast) && (atMost === undefined || value <= atMost) ? "met" : "missed";
}

export function show(value: number, unit = ""): string {
  const size = Math.abs(value);
  const digits =
    value === 0 || !Number.isFinite(value)
      ? String(value)
      : size < 1e-3
        ? value.toExponential(1)
        : size < 10
          ? value.toFixed(2)
          : size < 100
            ? value.toFixed(1)
            : String(Math.round(value));
  return unit === "" ? digits : `${digits} ${unit}`;
}

function targetOf({ atLeast, atMost, unit }: Figure): string {
  const parts = [
    ...(atLeast === undefined ? [] : [`≥ ${show(atLeast, unit)}`]),
    ...(atMost === undefined ? [] : [`≤ ${show(atMost, unit)}`]),
  ];
  return parts.join(", ");
}

function percent(share: number | undefined): string {
  return share === undefined ? "" : `±${Math.round(50 * share)} %`;
}

const FIGURE_COLUMNS = ["figure", "value", "spread", "target", "outcome"];

function figureRow(figure: Figure): string[] {
  return [figure.name, show(figure.value, figure.unit), percent(figure.spread), targetOf(figure), outcome(figure)];
}

function padded(columns: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const widths = columns.map((column, k) => Math.max(column.length, ...rows.map((row) => row[k].length)));
  return [columns, ...rows].map((row) =>
    row
      .map((cell, k) => cell.padEnd(widths[k]))
      .join("  ")
      .trimEnd(),
  );
}

function cells(rows: readonly (readonly (number | string)[])[]): string[][] {
  return rows.map((row) => row.map((cell) => (typeof cell === "number" ? show(cell) : cell)));
}

function heading({ cpu, node, threads, device, commit, date, quick }: Report): string {
  const speed = quick ? " — quick run, not to be quoted" : "";
  return `${cpu}; Node ${node}; ${threads} threads; ${device}; commit ${commit}; ${date}${speed}`;
}

/** The report for a terminal. */
export function toText(report: Report): string {
  const lines = [heading(report)];
  for (const result of report.results) {
    lines.push("", `${result.name}: ${result.question}`);
    if (result.error !== undefined) lines.push(`  failed: ${result.error}`);
    lines.push(...padded(FIGURE_COLUMNS, result.figures.map(figureRow)).map((line) => `  ${line}`));
    const { table } = result;
    if (table) lines.push("", ...padded(table.columns, cells(table.rows)).map((line) => `  ${line}`));
  }
  return `${lines.join("\n")}\n`;
}

function markdownTable(columns: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const row = (list: readonly string[]) => `| ${list.join(" | ")} |`;
  return [row(columns), row(columns.map(() => "---")), ...rows.map(row)];
}

/** The report as a page of the documentation. */
export function toMarkdown(report: Report): string {
  const lines = ["# Benchmark results", "", heading(report), "", "Written by `npm run bench`; see benchmarks.md."];
  for (const result of report.results) {
    lines.push("", `## ${result.name}`, "", result.question, "", `Target: ${result.target}.`, "");
    if (result.error !== undefined) lines.push(`Failed: ${result.error.split("\n")[0]}`, "");
    lines.push(...markdownTable(FIGURE_COLUMNS, result.figures.map(figureRow)));
    if (result.table) lines.push("", ...markdownTable(result.table.columns, cells(result.table.rows)));
  }
  return `${lines.join("\n")}\n`;
}

/** What changed between two runs, figure by figure. */
export function compare(before: Report, after: Report): string {
  const lines = [`before: ${heading(before)}`, `after:  ${heading(after)}`];
  if (before.cpu !== after.cpu || before.node !== after.node || before.threads !== after.threads) {
    lines.push("The machines differ: compare shares and ratios, not times.");
  }
  for (const result of after.results) {
    const old = before.results.find(({ name }) => name === result.name);
    const rows = result.figures.map((figure) => {
      const was = old?.figures.find(({ name }) => name === figure.name);
      const change = was && was.value !== 0 ? `${show(100 * (figure.value / was.value - 1))} %` : "new";
      return [
        figure.name,
        was ? show(was.value, was.unit) : "",
        show(figure.value, figure.unit),
        change,
        was ? outcome(was) : "",
        outcome(figure),
      ];
    });
    lines.push("", result.name);
    lines.push(...padded(["figure", "before", "after", "change", "was", "is"], rows).map((line) => `  ${line}`));
  }
  return `${lines.join("\n")}\n`;
}
