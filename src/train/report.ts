import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type { Metric } from "./metrics.js";

const MOST_POINTS = 2000;

interface Chart {
  title: string;
  x: string;
  log?: boolean;
  series: { label: string; points: readonly (readonly [number, number])[]; faint?: boolean }[];
}

/** At most MOST_POINTS of them, the last one among them. */
function thinned<T>(points: readonly T[]): readonly T[] {
  const every = Math.ceil(points.length / MOST_POINTS);
  return every <= 1 ? points : points.filter((_, k) => (points.length - 1 - k) % every === 0);
}

/** Exponential mean over about `span` points, without the bias of the start. */
function smoothed(points: readonly (readonly [number, number])[], span: number): [number, number][] {
  let sum = 0;
  let weight = 0;
  return points.map(([x, y]) => {
    sum += (y - sum) / span;
    weight += (1 - weight) / span;
    return [x, sum / weight];
  });
}

const escaped = (text: string) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

function charts(metrics: readonly Metric[]): Chart[] {
  const steps = metrics.filter((m) => m.kind === "step");
  const evals = metrics.filter((m) => m.kind === "eval");
  const span = Math.min(50, Math.max(1, steps.length / 20));
  const loss = (x: "step" | "tokens"): Chart["series"] => {
    const raw = steps.map((m) => [m[x], m.loss] as const);
    return [
      { label: "training", points: raw, faint: true },
      { label: "training, smoothed", points: smoothed(raw, span) },
      { label: "held out", points: evals.map((m) => [m[x], m.loss] as const) },
    ];
  };
  const line = (title: string, of: (m: (typeof steps)[number]) => number, log = false): Chart => ({
    title,
    x: "step",
    log,
    series: [{ label: title, points: steps.map((m) => [m.step, of(m)] as const) }],
  });
  return [
    { title: "Loss (nats per token)", x: "step", series: loss("step") },
    { title: "Loss (nats per token)", x: "tokens", series: loss("tokens") },
    line("Learning rate", (m) => m.learningRate),
    line("Gradient norm, before clipping", (m) => m.gradientNorm, true),
    line("Tokens per second", (m) => m.tokensPerSecond),
  ];
}

/** uPlot takes one x for all series; points are thinned first, and what a series lacks is null. */
function table(chart: Chart): (number | null)[][] {
  const series = chart.series.map((s) => thinned(s.points));
  const xs = [...new Set(series.flatMap((points) => points.map(([x]) => x)))].sort((a, b) => a - b);
  const columns = series.map((points) => {
    const byX = new Map(points);
    return xs.map((x) => {
      const y = byX.get(x);
      return y === undefined || !Number.isFinite(y) || (chart.log && y <= 0) ? null : y;
    });
  });
  return [xs, ...columns];
}

const SCRIPT = `
const colors = ["#c9d6e8", "#2563eb", "#d97706"];
for (const { title, x, log, labels, faint, data } of charts) {
  const box = document.createElement("figure");
  document.getElementById("charts").append(box);
  const width = () => Math.min(box.clientWidth || 640, 900);
  const plot = new uPlot({
    title, width: width(), height: 280,
    scales: { x: { time: false }, y: log ? { distr: 3 } : {} },
    axes: [{ label: x }, { size: 70 }],
    series: [{ label: x }, ...labels.map((label, k) => ({
      label, spanGaps: true, width: faint[k] ? 1 : 2, points: { show: label === "held out" },
      stroke: labels.length === 1 ? colors[1] : colors[k],
    }))],
  }, data, box);
  addEventListener("resize", () => plot.setSize({ width: width(), height: 280 }));
}`;

export interface ReportInput {
  title: string;
  /** Lines under the title. */
  summary: readonly string[];
  config: object;
  metrics: readonly Metric[];
  /** The page reloads itself every half minute. */
  running: boolean;
}

/** A page that needs nothing but itself: charts, samples and the configuration. */
export function reportHtml({ title, summary, config, metrics, running }: ReportInput): string {
  const require = createRequire(import.meta.url);
  const library = readFileSync(require.resolve("uplot/dist/uPlot.iife.min.js"), "utf8");
  const style = readFileSync(require.resolve("uplot/dist/uPlot.min.css"), "utf8");
  const drawn = charts(metrics).map((chart) => ({
    ...{ title: chart.title, x: chart.x, log: chart.log ?? false, data: table(chart) },
    labels: chart.series.map((s) => s.label),
    faint: chart.series.map((s) => s.faint ?? false),
  }));
  const samples = metrics.filter((m) => m.kind === "sample").slice(-8);
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
${running ? '<meta http-equiv="refresh" content="30">' : ""}
<title>${escaped(title)}</title>
<style>
${style}
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1f2937; background: #fff; }
figure { margin: 1.5rem 0; }
pre { background: #f3f4f6; padding: 0.75rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>${escaped(title)}</h1>
${summary.map((line) => `<p>${escaped(line)}</p>`).join("\n")}
<div id="charts"></div>
<h2>Samples</h2>
${samples.map((m) => `<h3>Step ${m.step}</h3>\n<pre>${escaped(m.text)}</pre>`).join("\n") || "<p>None yet.</p>"}
<h2>Configuration</h2>
<pre>${escaped(JSON.stringify(config, undefined, 2))}</pre>
<script>${library}</script>
<script>
const charts = ${JSON.stringify(drawn).replaceAll("<", "\\u003c")};
${SCRIPT}
</script>
</body>
</html>
`;
}
