import { BarChart, type BarSeriesOption } from "echarts/charts";
import { GridComponent, LegendComponent, TitleComponent } from "echarts/components";
import { init, use } from "echarts/core";
import { SVGRenderer } from "echarts/renderers";
import { COLORS, FONT, INK } from "./plot.js";

use([BarChart, GridComponent, LegendComponent, TitleComponent, SVGRenderer]);

export interface BarPlot {
  title: string;
  /** What the value axis shows, with its unit. */
  y: string;
  groups: readonly string[];
  /** A value for each group, or null where there is none, by the name of the bars. */
  series: Record<string, readonly (number | null)[]>;
  logY?: boolean;
}

const [HEIGHT, PLOT_WIDTH] = [420, 640];

const shown = (value: number) => (value >= 100 ? Math.round(value) : Number(value.toPrecision(2))).toLocaleString("en");

/** Groups of bars as one SVG image, each with its value above it. A logarithmic axis leaves out what is not above 0. */
export function barPlot({ title, y, groups, series, logY = false }: BarPlot): string {
  const names = Object.keys(series);
  const drawn = (value: number | null) => value !== null && Number.isFinite(value) && (!logY || value > 0);
  const values = Object.values(series).flatMap((list) => list.filter((value): value is number => drawn(value)));
  if (values.length === 0) throw new RangeError(`barPlot: ${title} has no values; give each series some`);
  const bars: BarSeriesOption[] = names.map((name, k) => ({
    ...{
      type: "bar",
      name,
      data: series[name].map((value) => (drawn(value) ? value : "-")),
      color: COLORS[k % COLORS.length],
    },
    label: {
      ...{ show: true, position: "top", color: INK, fontSize: 10 },
      formatter: ({ value }) => (typeof value === "number" ? shown(value) : ""),
    },
  }));
  const legendWidth = 50 + 7.2 * Math.max(...names.map((name) => name.length));
  const chart = init(null, null, { renderer: "svg", ssr: true, width: PLOT_WIDTH + legendWidth, height: HEIGHT });
  try {
    chart.setOption({
      animation: false,
      backgroundColor: "#ffffff",
      textStyle: { fontFamily: FONT, color: INK },
      title: { text: title, left: 12, top: 10, textStyle: { color: INK, fontSize: 16, fontWeight: 600 } },
      legend: {
        ...{ orient: "vertical", left: PLOT_WIDTH, top: 56, itemGap: 12 },
        textStyle: { color: INK, fontSize: 13 },
      },
      grid: { left: 78, right: legendWidth + 16, top: 56, bottom: 40 },
      xAxis: { type: "category", data: [...groups], axisLabel: { color: INK, fontSize: 13 } },
      yAxis: {
        // A bar on a logarithmic axis starts at its lower end: a decade below the smallest keeps that one visible.
        ...(logY ? { type: "log", min: 10 ** Math.floor(Math.log10(Math.min(...values)) - 0.3) } : { type: "value" }),
        ...{ name: y, nameLocation: "middle", nameGap: 56, nameTextStyle: { color: INK, fontSize: 13 } },
        ...{ axisLabel: { color: INK, formatter: shown }, splitLine: { lineStyle: { color: "#e5e7eb" } } },
      },
      series: bars,
    });
    return `${chart.renderToSVGString()}\n`;
  } finally {
    chart.dispose();
  }
}
