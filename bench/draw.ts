import { barPlot } from "./bar-plot.js";
import type { Plot } from "./context.js";
import { FONT, INK, linePlot } from "./plot.js";
import { heading, type Report } from "./report.js";

const escaped = (text: string) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** Words in lines of at most `length` characters. */
function wrapped(text: string, length: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= length) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}

/** Adds lines under an image, and the same text as its description. */
export function captioned(svg: string, caption: string): string {
  const [, width, height] = /<svg width="([\d.]+)" height="([\d.]+)"/.exec(svg)?.map(Number) ?? [];
  if (!width) throw new Error("captioned: an image with a width and a height in pixels is needed");
  const lines = wrapped(caption, Math.floor(width / 6));
  const tall = height + 16 * lines.length + 12;
  const rows = lines.map((line, k) => `<tspan x="12" y="${height + 10 + 16 * k}">${escaped(line)}</tspan>`).join("");
  const text = `<text font-family="${FONT}" font-size="11" fill="${INK}">${rows}</text>`;
  return svg
    .replace(/<svg[^>]*>/, (open) =>
      open
        .replace(`height="${height}"`, `height="${tall}"`)
        .replace(/viewBox="[^"]*"/, `viewBox="0 0 ${width} ${tall}"`)
        .concat(`<desc>${escaped(caption)}</desc><rect width="${width}" height="${tall}" fill="#ffffff"/>`),
    )
    .replace("</svg>", `${text}</svg>`);
}

/** A plot as SVG that says on which machine, with which driver and versions and at which commit it was measured. */
export function draw(plot: Plot, report: Report): string {
  return captioned(plot.kind === "lines" ? linePlot(plot) : barPlot(plot), heading(report));
}
