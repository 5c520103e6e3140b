import { describe, expect, it } from "vitest";
import { linePlot } from "../bench/plot.js";

const axes = { title: "Loss & <more>", x: "tokens", y: "nats" };

describe("linePlot", () => {
  it("draws a self-contained image on white, with title, axes and the names of the lines", () => {
    const svg = linePlot({
      ...axes,
      series: {
        first: [
          [1, 2],
          [2, 3],
        ],
        second: [
          [1, 4],
          [2, 1],
        ],
      },
    });
    expect(svg).toMatch(/^<svg [^>]*xmlns="http:\/\/www\.w3\.org\/2000\/svg"/);
    expect(svg).toContain('fill="#ffffff"');
    for (const text of ["Loss &amp; &lt;more&gt;", "tokens", "nats", "first", "second"])
      expect(svg).toContain(`>${text}<`);
    expect(svg).not.toMatch(/<script|<image|<foreignObject|href="http/);
    const strokes = new Set([...svg.matchAll(/stroke="(#[0-9a-f]{6})" stroke-width="2"/g)].map((match) => match[1]));
    expect(strokes.size).toBe(2);
  });

  it("puts points where they belong, also on logarithmic axes", () => {
    const ends = (logX: boolean, values: [number, number][]) => {
      const path = linePlot({ ...axes, logX, markers: false, series: { line: values } }).match(
        /<path d="(M[^"]*)" fill="none" [^>]*stroke="#0072b2" stroke-width="2"/,
      )![1];
      return path.match(/[\d.]+/g)!.map(Number);
    };
    const [x1, , x2, , x3] = ends(true, [
      [16, 1],
      [64, 2],
      [256, 3],
    ]);
    expect(x2 - x1).toBeCloseTo(x3 - x2, 0);
    const [y1, y2, y3] = [1, 3, 5].map(
      (k) =>
        ends(false, [
          [0, 0],
          [1, 50],
          [2, 100],
        ])[k],
    );
    expect(y1 - y2).toBeCloseTo(y2 - y3, 0);
    expect(y1).toBeGreaterThan(y3);
  });

  it("labels doubling sizes at each doubling", () => {
    const series = {
      line: [
        [256, 1],
        [512, 2],
        [2048, 3],
      ] as [number, number][],
    };
    const svg = linePlot({ ...axes, logX: true, series });
    for (const tick of ["256", "512", "1,024", "2,048"]) expect(svg).toContain(`>${tick}<`);
  });

  it("leaves out what is not finite, and refuses what cannot be drawn", () => {
    const point: [number, number] = [1, 1];
    expect(linePlot({ ...axes, series: { line: [point, [2, Number.NaN], [3, 2]] } })).not.toContain("NaN");
    expect(() => linePlot({ ...axes, series: { line: [[2, Number.NaN]] } })).toThrow(RangeError);
    expect(() => linePlot({ ...axes, series: {} })).toThrow(/no points/);
    expect(() => linePlot({ ...axes, logY: true, series: { line: [point, [2, 0]] } })).toThrow(/above 0, got 0/);
  });
});
