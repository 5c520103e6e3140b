import { LineChart, type LineSeriesOption } from "echarts/charts";
import { GridComponent, LegendComponent, TitleComponent } from "echarts/components";
import { init, use } from "echarts/core";
import { SVGRenderer } from "echarts/renderers";

use([LineChart, GridComponent, LegendComponent, TitleComponent, SVGRenderer]);

export interface LinePlot {
  title: string;
  /** What the axes show, with units. */
  x: string;
  y: string;
  /** Points of each line by its name, in the order of x. Points that are not finite are left out. */
  series: Record<string, readonly (readonly [number, number])[]>;
  logX?: boolean;
  logY?: boolean;
  /** A mark at each point; default true. */
  markers?: boolean;
}

/** Okabe and Ito's colours, which people with any colour vision can tell apart, darkened where white would swallow them. */
export const COLORS = ["#0072b2", "#d55e00", "#009e73", "#a0468c", "#3d3d3d", "#b58900", "#56a3d9", "#8c564b"];
const SYMBOLS = ["circle", "rect", "triangle", "diamond", "emptyCircle", "emptyRect", "emptyTriangle", "emptyDiamond"];
export const INK = "#1f2937";
export const FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif";
const [HEIGHT, PLOT_WIDTH] = [420, 640];

function axis(name: string, values: readonly number[], log: boolean) {
  // Sizes that double want a tick at each doubling.
  const doubling = log && values.every((value) => Number.isInteger(Math.log2(value)));
  return {
    ...(log ? { type: "log" as const, logBase: doubling ? 2 : 10 } : { type: "value" as const, scale: true }),
    // Log axes would run to the next power on either side.
    ...(doubling ? { min: "dataMin" as const, max: "dataMax" as const } : {}),
    name,
    nameLocation: "middle" as const,
    nameTextStyle: { color: INK, fontSize: 13 },
    axisLine: { show: true, lineStyle: { color: INK } },
    axisTick: { show: true },
    axisLabel: { color: INK, formatter: (value: number) => shown(value) },
    splitLine: { lineStyle: { color: "#e5e7eb" } },
  };
}

function shown(value: number): string {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential().replace("e+", "e");
  return value.toLocaleString("en", { maximumFractionDigits: 4 });
}

/**
 * Lines as one SVG image that needs nothing but itself: on white, with the names beside the lines in the order given.
 * @throws RangeError where there is no point to draw, or a logarithmic axis meets a value that is not above 0
 */
export function linePlot(plot: LinePlot): string {
  const { title, x, y, logX = false, logY = false, markers = true } = plot;
  const lines = Object.entries(plot.series).map(
    ([name, points]) => [name, points.filter((point) => point.every(Number.isFinite))] as const,
  );
  const points = lines.flatMap(([, list]) => list);
  if (points.length === 0) throw new RangeError(`linePlot: ${title} has no points; give each series some`);
  for (const [log, k] of [[logX, 0] as const, [logY, 1] as const]) {
    const bad = log && points.find((point) => point[k] <= 0);
    if (bad) throw new RangeError(`linePlot: a logarithmic axis needs values above 0, got ${bad[k]}; leave it linear`);
  }
  const longest = Math.max(...lines.map(([name]) => name.length));
  const legendWidth = Math.round(50 + 7.2 * longest);
  const series: LineSeriesOption[] = lines.map(([name, list], k) => {
    const color = COLORS[k % COLORS.length];
    const [symbol, type] = [SYMBOLS[k % SYMBOLS.length], k < COLORS.length ? "solid" : "dashed"] as const;
    return {
      ...{
        type: "line",
        name,
        data: list.map((point) => [...point]),
        symbol: markers ? symbol : "none",
        symbolSize: 7,
      },
      ...{ color, lineStyle: { width: 2, color, type }, silent: true, emphasis: { disabled: true } },
    };
  });
  // Without a DOM the chart has no element, only a size.
  const chart = init(null, null, { renderer: "svg", ssr: true, width: PLOT_WIDTH + legendWidth, height: HEIGHT });
  try {
    chart.setOption({
      animation: false,
      backgroundColor: "#ffffff",
      textStyle: { fontFamily: FONT, color: INK },
      title: { text: title, left: 12, top: 10, textStyle: { color: INK, fontSize: 16, fontWeight: 600 } },
      legend: {
        ...{ orient: "vertical", left: PLOT_WIDTH, top: 56, itemGap: 12, selectedMode: false },
        textStyle: { color: INK, fontSize: 13 },
      },
      grid: { left: 78, right: legendWidth + 16, top: 56, bottom: 60 },
      xAxis: {
        ...axis(
          x,
          points.map((point) => point[0]),
          logX,
        ),
        nameGap: 34,
      },
      yAxis: {
        ...axis(
          y,
          points.map((point) => point[1]),
          logY,
        ),
        nameGap: 56,
      },
      series,
    });
    return `${chart.renderToSVGString()}\n`;
  } finally {
    chart.dispose();
  }
}
