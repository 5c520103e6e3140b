import { describe, expect, it } from "vitest";
import { backwardOperations, forwardOperations } from "../bench/arithmetic.js";
import { crossing } from "../bench/crossover.js";
import { interleave, timing } from "../bench/measure.js";
import { makeProblem, type Problem, worstError } from "../bench/peers/peer.js";
import { reference } from "../bench/peers/reference.js";
import { compare, outcome, type Report } from "../bench/report.js";

describe("bench", () => {
  it("summarises timings", () => {
    expect(timing([5, 1, 3, 2, 4])).toEqual({ median: 3, mean: 3, fastest: 1, spread: 2 / 3, runs: 5 });
  });

  it("times tasks in turn, after the warm-up", async () => {
    const calls: string[] = [];
    const task = (name: string, ms: number) => () => {
      calls.push(name);
      return ms;
    };
    const times = await interleave({ a: task("a", 1), b: task("b", 2) }, { warmUp: 1, rounds: 2 });
    expect(calls).toEqual(["a", "b", "a", "b", "a", "b"]);
    expect([times.a.median, times.b.median, times.a.runs]).toEqual([1, 2, 2]);
  });

  it("counts the chunked form's products as a loop over tokens and pairs does", () => {
    const [T, d, e, C, D] = [16, 3, 5, 4, 6];
    const shape = { batch: 2, tokens: T, queryHeads: 4, heads: 2, headDim: d, valueDim: e, degree: 2, chunkSize: C };
    let forward = 0;
    let backward = 0;
    for (let t = 0; t < T; t++) {
      forward += 4 * 2 * D * e + 2 * 2 * D * e;
      backward += 4 * 2 * 2 * D * e + 2 * 3 * 2 * D * e;
      for (let j = t - (t % C); j <= t; j++) {
        forward += 4 * 2 * (d + e);
        backward += 4 * 2 * (3 * d + 2 * e);
      }
    }
    expect(forwardOperations(shape)).toBe(2 * forward);
    expect(backwardOperations(shape)).toBe(2 * backward);
  });

  it("finds where one curve falls below the other", () => {
    const points = (ratios: number[]) => ratios.map((ratio, k) => ({ tokens: 256 * 2 ** k, ratio }));
    expect(crossing(points([0.5, 2, 4]))).toBeCloseTo(Math.sqrt(256 * 512));
    expect(crossing(points([2, 0.5, 0.5]))).toBe(Number.POSITIVE_INFINITY);
    expect(crossing(points([1.5, 2]))).toBe(256);
  });

  it("judges figures, and a NaN is missed", () => {
    expect(outcome({ name: "", value: 3, unit: "" })).toBe("");
    expect(outcome({ name: "", value: 3, unit: "", atLeast: 3 })).toBe("met");
    expect(outcome({ name: "", value: 3, unit: "", atMost: 2 })).toBe("missed");
    expect(outcome({ name: "", value: Number.NaN, unit: "", atMost: 2 })).toBe("missed");
    expect(worstError([1, Number.NaN, 1], [1, 1, 1])).toBeNaN();
  });

  it("says what changed between two runs", () => {
    const report = (value: number): Report => ({
      ...{ date: "", commit: "", cpu: "a", node: "20", threads: 2, device: "", quick: false },
      results: [
        { name: "forward", question: "", target: "", figures: [{ name: "share", value, unit: "%", atLeast: 65 }] },
      ],
    });
    expect(compare(report(60), report(72))).toMatch(/share +60\.0 % +72\.0 % +20\.0 % +missed +met/);
  });

  it.each(["power", "softmax"] as const)("differentiates the peers' %s reference as finite differences do", (kind) => {
    const widen = (x: ArrayLike<number>) => Float64Array.from(x);
    const made = makeProblem(5, 2, 4, 7);
    const inputs = { q: widen(made.q), k: widen(made.k), v: widen(made.v), logG: widen(made.logG) };
    const problem = { ...made, ...inputs } as unknown as Problem;
    const loss = () => reference(kind, problem).output.reduce((sum, y, i) => sum + y * made.upstream[i], 0);
    const { gradients } = reference(kind, problem);
    for (const part of ["q", "k", "v", "logG"] as const) {
      const differences = inputs[part].map((x, i, values) => {
        values[i] = x + 1e-5;
        const above = loss();
        values[i] = x - 1e-5;
        const below = loss();
        values[i] = x;
        return (above - below) / 2e-5;
      });
      if (kind === "softmax" && part === "logG") expect(Math.max(...differences.map(Math.abs))).toBe(0);
      else expect(worstError(gradients[part], differences)).toBeLessThan(1e-7);
    }
  });
});
