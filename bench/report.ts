import type { Figure, KernelTime, Result } from "./context.js";
import type { GpuDescription } from "./machine.js";

/** What a run writes to JSON, and what `--compare` and `--with` read back. */
export interface Report {
  date: string;
  commit: string;
  cpu: string;
  node: string;
  threads: number;
  device: string;
  /** Where the run was about a GPU. */
  gpu?: GpuDescription;
  versions?: Record<string, string>;
  quick: boolean;
  /** `run`: where reports were joined, the line that says of which run a result is. */
  results: (Result & { name: string; question: string; target: string; error?: string; run?: string })[];
}

export function outcome(figure: Figure): "" | "met" | "missed" {
  const { value, atLeast, atMost } = figure;
  if (atLeast === undefined && atMost === undefined) return "";
  // Written so that a NaN is missed.
  return (atLeast === undefined || value >= atLeast) && (atMost === undefined || value <= atMost) ? "met" : "missed";
}

export function show(value: number, unit = ""): string {
  const size = Math.abs(value);
  if (size >= 1e5 && Number.isFinite(value)) return `${Math.round(value).toLocaleString("en")} ${unit}`.trim();
  const digits =
    value === 0 || !Number.isFinite(value)
      ? String(value)
      : size < 1e-2
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

/** Aim and floor have columns only where a figure has them. */
function figureTable(figures: readonly Figure[]): { columns: string[]; rows: string[][] } {
  const optional = (["aim", "floor"] as const).filter((key) => figures.some((figure) => figure[key] !== undefined));
  const at = (figure: Figure, key: "aim" | "floor") =>
    figure[key] === undefined ? "" : show(figure[key], figure.unit);
  return {
    columns: ["figure", "value", "spread", "target", ...optional, "outcome"],
    rows: figures.map((figure) => [
      figure.name,
      show(figure.value, figure.unit),
      percent(figure.spread),
      targetOf(figure),
      ...optional.map((key) => at(figure, key)),
      reached(figure),
    ]),
  };
}

/** The outcome, and whether the aim beyond the target was reached as well. */
function reached(figure: Figure): string {
  const { value, aim, atMost } = figure;
  const result = outcome(figure);
  if (aim === undefined || result !== "met") return result;
  return (atMost === undefined ? value >= aim : value <= aim) ? "met, and the aim" : result;
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

/** One line that says what was measured, on what. */
export function heading({ cpu, node, threads, device, gpu, versions, commit, date, quick }: Report): string {
  const speed = quick ? " — quick run, not to be quoted" : "";
  const adapter = gpu
    ? [
        `${gpu.adapter}, driver ${gpu.driver}`,
        `matrix units ${gpu.matrixUnits}`,
        `bounds checks ${gpu.boundsChecks ? "on" : "off"}`,
      ]
    : [];
  const dawn = versions?.webgpu ? `, webgpu ${versions.webgpu}` : "";
  const about = [...adapter, cpu, `Node ${node}${dawn}`, `${threads} threads`, ...(gpu ? [] : [device])];
  return `${[...about, `commit ${commit}`, date].join("; ")}${speed}`;
}

function remarksOf({ notes = {} }: Result): string {
  const parts = Object.entries(notes).map(([name, value]) => `${name}: ${value}`);
  return parts.length > 0 ? `Notes: ${parts.join("; ")}.` : "";
}

/** Kernels by their share of a call's GPU time. */
function profileTable(kernels: readonly KernelTime[]): { columns: string[]; rows: string[][] } {
  const total = kernels.reduce((sum, { ms }) => sum + ms, 0);
  return {
    columns: ["kernel", "calls", "ms", "share"],
    rows: kernels.map(({ name, count, ms }) => [name, String(count), ms.toFixed(3), show((100 * ms) / total, "%")]),
  };
}

/** The report for a terminal; with `profile` also the GPU's time by kernel. */
export function toText(report: Report, { profile = false } = {}): string {
  const lines = [heading(report)];
  for (const result of report.results) {
    lines.push("", `${result.name}: ${result.question}`);
    if (result.error !== undefined) lines.push(`  failed: ${result.error}`);
    for (const failure of result.failures ?? []) lines.push(`  failed: ${failure}`);
    const figures = figureTable(result.figures);
    lines.push(...padded(figures.columns, figures.rows).map((line) => `  ${line}`));
    const { table } = result;
    if (table) lines.push("", ...padded(table.columns, cells(table.rows)).map((line) => `  ${line}`));
    const remarks = remarksOf(result);
    if (remarks) lines.push("", `  ${remarks}`);
    for (const { name, kernels } of (profile && result.profiles) || []) {
      const list = profileTable(kernels);
      lines.push("", `  ${name}:`, ...padded(list.columns, list.rows).map((line) => `    ${line}`));
    }
  }
  return `${lines.join("\n")}\n`;
}

function markdownTable(columns: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const row = (list: readonly string[]) => `| ${list.join(" | ")} |`;
  return [row(columns), row(columns.map(() => "---")), ...rows.map(row)];
}

/** The report as a page of the documentation; `picture` gives the address of a result's plot, where there is one. */
export function toMarkdown(report: Report, picture?: (name: string) => string): string {
  const joined = report.results.some(({ run }) => run !== undefined);
  const about = joined ? "Several runs of one machine; the line under each heading says which." : heading(report);
  const lines = [
    "# Benchmark results",
    "",
    "Written by `npm run bench`; see [benchmarks.md](benchmarks.md).",
    "",
    about,
  ];
  for (const result of report.results) {
    lines.push(
      "",
      `## ${result.name}`,
      "",
      ...(result.run ? [result.run, ""] : []),
      result.question,
      "",
      `Target: ${result.target}.`,
      "",
    );
    if (result.error !== undefined) lines.push(`Failed: ${result.error.split("\n")[0]}`, "");
    for (const failure of result.failures ?? []) lines.push(`Failed: ${failure.split("\n")[0]}`, "");
    if (result.plot && picture) lines.push(`![${result.plot.title}](${picture(result.name)})`, "");
    const figures = figureTable(result.figures);
    lines.push(...markdownTable(figures.columns, figures.rows));
    if (result.table) lines.push("", ...markdownTable(result.table.columns, cells(result.table.rows)));
    const remarks = remarksOf(result);
    if (remarks) lines.push("", remarks);
  }
  return `${lines.join("\n")}\n`;
}

/** What changed between two runs, figure by figure. */
export function compare(before: Report, after: Report): string {
  const lines = [`before: ${heading(before)}`, `after:  ${heading(after)}`];
  const machine = ({ cpu, node, threads, gpu }: Report) =>
    JSON.stringify(gpu ? [gpu.adapter, gpu.driver, node] : [cpu, node, threads]);
  if (machine(before) !== machine(after)) {
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
    const gone = old?.figures.filter(({ name }) => !result.figures.some((figure) => figure.name === name)) ?? [];
    rows.push(...gone.map((was) => [was.name, show(was.value, was.unit), "", "gone", outcome(was), ""]));
    lines.push("", result.error === undefined ? result.name : `${result.name}: failed: ${result.error.split("\n")[0]}`);
    for (const failure of result.failures ?? []) lines.push(`  failed: ${failure}`);
    lines.push(...padded(["figure", "before", "after", "change", "was", "is"], rows).map((line) => `  ${line}`));
  }
  return `${lines.join("\n")}\n`;
}

/**
 * Several runs of one machine as one report: questions of later runs replace those of earlier ones.
 * @throws RangeError where the machines differ or quick runs would be mixed with others
 */
export function merge(reports: readonly Report[]): Report {
  const last = reports[reports.length - 1];
  const same = ({ cpu, device, quick }: Report) => JSON.stringify([cpu, device, quick]);
  const other = reports.find((report) => same(report) !== same(last));
  if (other) {
    throw new RangeError(
      `bench: reports of one machine are needed, got ${heading(other)} and ${heading(last)}; write two pages`,
    );
  }
  if (reports.length === 1) return last;
  const results = new Map(
    reports.flatMap((report) =>
      report.results.map((result) => [result.name, { ...result, run: result.run ?? heading(report) }] as const),
    ),
  );
  const commits = [...new Set(reports.map(({ commit }) => commit))].join(", ");
  return { ...last, commit: commits, results: [...results.values()] };
}
