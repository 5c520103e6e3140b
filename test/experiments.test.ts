import { execFile } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { attentionKinds } from "../bench/experiments/attention-kinds.js";
import { decoding } from "../bench/experiments/decoding.js";
import { deviation, type Experiment, type JobRecord, meanLine } from "../bench/experiments/experiment.js";
import { gating } from "../bench/experiments/gating.js";
import { slotsOf } from "../bench/experiments/jobs.js";
import { pastTraining } from "../bench/experiments/past-training.js";
import { halfway, recall } from "../bench/experiments/recall.js";
import { KEYS, NO_VALUE, sequences, VALUES } from "../bench/experiments/recall-task.js";
import { replaced, report, saveResults } from "../bench/experiments/report.js";
import { spansOf } from "../bench/experiments/text-runs.js";
import { prepare } from "../src/data/index.js";
import { defaultDevice } from "../src/devices/get-device.js";
import { Generator } from "../src/index.js";

const RUN = fileURLToPath(new URL("../dist/bench/experiments/run.js", import.meta.url));
const run = (...args: string[]) => promisify(execFile)(process.execPath, [RUN, ...args]);

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "experiments-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

/** The jobs of an experiment with values made up from their settings. */
function recordsOf<V>(experiment: Experiment<V>, seeds: number, value: (settings: JobRecord["settings"]) => V) {
  return experiment.jobs({ seeds }).map(
    ({ name, settings }): JobRecord<V> => ({
      ...{ name, settings, value: value(settings), device: "wasm (1 thread)", machine: "CPU × 2", node: "20" },
      ...{ commit: "abc", date: "2026-01-02T03:04:05Z", seconds: 60 },
    }),
  );
}

const flat = (ends: number[], loss: number) => ends.map((end): [number, number] => [end, loss]);

const token = (attention: "power" | "softmax", position: number, milliseconds: number, mib: number) => ({
  ...{ attention, position, milliseconds, bytes: mib * 2 ** 20 },
});
const tokens = [
  ...[token("power", 100, 1.25, 1), token("power", 30000, 1.25, 1)],
  ...[token("softmax", 100, 2, 1), token("softmax", 30000, 9, 3)],
];

describe("experiments", () => {
  it("compare kinds of attention by the mean over seeds, against softmax", () => {
    const loss = ({ kind, seed }: JobRecord["settings"]) => (kind === "softmax" ? 2 : 1.5) + Number(seed) / 10;
    const records = recordsOf(attentionKinds, 2, (s) => ({ curve: flat([10, 20], loss(s)), loss: loss(s), spans: [] }));
    const { rows, series, seen } = attentionKinds.findings(records);
    expect(rows[0]).toEqual(["softmax", expect.closeTo(2.15), expect.closeTo(Math.sqrt(0.005)), 2.1, 2.2]);
    expect(rows).toHaveLength(5);
    expect(series["softmax"][1]).toEqual([20, expect.closeTo(2.15)]);
    expect(seen).toHaveLength(4);
    expect(seen[0]).toBe("power p=2, gated: 0.500 nats below softmax (deviation between seeds at most 0.071).");
  });

  it("say whether the gap that gates make grows with the context", () => {
    const value = (gap: (context: number) => number) => (s: JobRecord["settings"]) => {
      const context = Number(s.contextLength);
      const late = s.kind === "power p=2, gated" ? 1 : 1 + gap(context);
      return {
        curve: [],
        loss: 9,
        spans: [
          [context / 2, 9],
          [context, late],
        ] as [number, number][],
      };
    };
    const grows = gating.findings(
      recordsOf(
        gating,
        1,
        value((context) => context / 1024),
      ),
    );
    expect(grows.rows.map((row) => [row[0], row[5]])).toEqual([256, 512, 1024, 2048].map((c) => [c, c / 1024]));
    expect(grows.seen.at(-1)).toBe("The gap grows with each doubling.");
    expect(grows.seen.at(-2)).toBe(
      "Within windows of 2,048, the gap is 0.000 over the first 1024 positions and 2.000 over the last 1,024.",
    );
    expect(
      gating
        .findings(
          recordsOf(
            gating,
            1,
            value(() => 0.1),
          ),
        )
        .seen.at(-1),
    ).toMatch(/does not grow/);
  });

  it("read models past their training length", () => {
    const past = flat([16, 128], 3).concat([
      [256, 2],
      [512, 1.5],
      [1024, 1.25],
    ]);
    const records = recordsOf(pastTraining, 1, () => ({ curve: [], loss: 2, spans: [], past }));
    const { columns, rows, seen } = pastTraining.findings(records);
    expect(columns).toEqual(["model", "128–255", "256–511", "512–1,023"]);
    expect(rows).toContainEqual(["power p=2, gated, no positions", 2, 1.5, 1.25]);
    expect(rows).toHaveLength(5);
    expect(seen[0]).toMatch(/the loss is 0.750 lower/);
  });

  it("find how much is recalled, and draw findings from some of the runs", () => {
    const line: [number, number][] = [
      [4, 1],
      [16, 0.75],
      [64, 0.25],
    ];
    expect(halfway(line)).toBeCloseTo(32);
    expect(halfway([[4, 0.1]])).toBe(0);
    expect(halfway([[4, 0.9]])).toBeUndefined();
    const all = recordsOf(recall, 1, ({ kind }): [number, number][] => (kind === "softmax" ? [[1024, 1]] : line));
    const { rows, seen } = recall.findings(all.slice(0, 2));
    expect(rows.map((row) => row.slice(0, 2))).toEqual([
      ["softmax", "one a token"],
      ["p=4", "330"],
    ]);
    expect(seen[0]).toMatch(/recalls 100 % of 1,024 pairs/);
    expect(seen[1]).toMatch(/recalls half of about 32 pairs/);
  });

  it("compare the first token with the last", () => {
    const { rows, seen } = decoding.findings(recordsOf(decoding, 1, () => tokens));
    expect(rows[3]).toEqual(["softmax", 30000, 9, 3]);
    expect(seen[1]).toBe(
      "softmax: at position 30,000 a token takes 4.50 times as long as at 100, with 3.00 times the memory.",
    );
  });

  it("ask every key once, with the value that it was told with", () => {
    const { keys, values, targets, shape } = sequences(50, 3, new Generator(1));
    expect(shape).toEqual([3, 100]);
    for (let b = 0; b < 3; b++) {
      const told = new Map<number, number>();
      for (let t = 0; t < 50; t++) told.set(keys[b * 100 + t], values[b * 100 + t]);
      expect(told.size).toBe(50);
      expect(Math.max(...told.keys())).toBeLessThan(KEYS);
      expect(Math.max(...told.values())).toBeLessThan(VALUES);
      const asked = Array.from({ length: 50 }, (_, k) => b * 100 + 50 + k);
      expect(new Set(asked.map((at) => keys[at])).size).toBe(50);
      expect(asked.map((at) => targets[at])).toEqual(asked.map((at) => told.get(keys[at])));
      expect(asked.every((at) => values[at] === NO_VALUE && targets[at - 50] === -1)).toBe(true);
    }
  });

  it("summarise", () => {
    expect(deviation([1, 3])).toBeCloseTo(Math.SQRT2);
    expect(deviation([1])).toBeNaN();
    expect(meanLine([flat([1, 2], 3), flat([1, 2], 5)])).toEqual(flat([1, 2], 4));
    const spans = spansOf(Float64Array.from({ length: 40 }, (_, t) => (t < 16 ? 1 : t < 32 ? 2 : 3)));
    expect(spans).toEqual([
      [16, 1],
      [32, 2],
      [40, 3],
    ]);
  });

  it("share processes among devices", async () => {
    expect(await slotsOf("1", "wasm", 0)).toEqual([{ device: "wasm", threads: 0 }]);
    expect(await slotsOf("2", "wasm", 0)).toEqual([1, 1].map((threads) => ({ device: "wasm", threads })));
    expect(await slotsOf("wasm=1,webgpu=1", "auto", 2)).toEqual([
      ...[
        { device: "wasm", threads: 2 },
        { device: "webgpu", threads: 0 },
      ],
    ]);
    const { kind } = await defaultDevice();
    expect((await slotsOf("3", "auto", 0)).map(({ device }) => device)).toEqual([kind, kind, kind]);
    // Threads are of wasm, whatever the default is.
    expect(await slotsOf("1", "auto", 2)).toEqual([{ device: "wasm", threads: 2 }]);
    for (const wrong of ["0", "wasm", "gpu=2", "wasm=1,"]) {
      await expect(slotsOf(wrong, "auto", 1)).rejects.toThrow(RangeError);
    }
  });
});

describe("report", () => {
  it("puts tables and plots made from the kept numbers into the page", async () => {
    const results = join(folder, "results");
    const kept = recordsOf(decoding, 1, () => tokens);
    saveResults(results, { experiment: "decoding", planned: 2, records: kept });
    writeFileSync(`${results}.md`, "before\n<!-- decoding -->\nold\n<!-- end decoding -->\nafter\n");
    expect(await report([decoding, recall], results)).toEqual(["decoding"]);
    expect(readdirSync(results).sort()).toEqual(["decoding.json", "decoding.svg"]);
    const half = readFileSync(`${results}.md`, "utf8");
    expect(half).toContain("| power | 100 | 1.250 | 1 |");
    expect(half).toContain("**Not complete: 1 of 2 runs.**");
    expect(half).toContain("(results/decoding.svg)");
    expect(half).toContain(
      "1 run, 1.0 minutes of computing: wasm (1 thread); CPU × 2; Node 20; commit abc; 2026-01-02.",
    );
    expect(half).toMatch(/^before\n<!-- decoding -->\n\n\|[\s\S]*\n<!-- end decoding -->\nafter\n$/);
    expect(half).not.toContain("old");
    const changed = kept.map((record) => ({ ...record, value: tokens.map((t) => ({ ...t, milliseconds: 7 })) }));
    saveResults(results, { experiment: "decoding", planned: 1, records: changed });
    await report([decoding], results);
    const whole = readFileSync(`${results}.md`, "utf8");
    expect(whole).toContain("| power | 100 | 7 | 1 |");
    expect(whole).not.toContain("1.250");
    expect(whole).not.toContain("Not complete");
    expect(() => replaced("nothing", "decoding", "")).toThrow(/needs a line <!-- decoding -->/);
  });
});

describe("the command", () => {
  it("trains side by side, keeps what is done, and reports", async () => {
    const [data, out, text] = ["data", "out", "text.md"].map((name) => join(folder, name));
    const lines = Array.from({ length: 300 }, (_, k) => `${k} times seven is ${7 * k}.\n`);
    writeFileSync(text, lines.join(""));
    await prepare({ sources: [text], out: data, holdOut: 0.5 });
    const args = ["past-training", "--data", data, "--out", out, "--steps", "2", "--seeds", "1", "--jobs", "wasm=2"];
    const first = await run(...args);
    expect(first.stderr).toMatch(/past-training: complete/);
    expect(first.stderr).toMatch(/\[5 of 5] text-\S+: \d+ s on wasm \(1 thread/);
    const { records } = JSON.parse(readFileSync(join(out, "past-training.json"), "utf8"));
    expect(records).toHaveLength(5);
    for (const { value, settings } of records) {
      expect(settings.steps).toBe(2);
      expect(value.past.map(([end]: [number]) => end)).toEqual([16, 32, 64, 128, 256, 512, 1024]);
      for (const [, loss] of [...value.past, ...value.curve]) expect(loss).toBeGreaterThan(1);
    }
    expect(readFileSync(join(out, "past-training.md"), "utf8")).toContain("tokens 4,096");
    expect(readFileSync(join(out, "past-training.svg"), "utf8")).toMatch(/^<svg/);
    const job = join(out, "jobs", `${records[0].name}.json`);
    const written = statSync(job).mtimeMs;
    rmSync(join(out, "jobs", `${records[1].name}.json`));
    const again = await run(...args);
    expect(again.stderr.match(/done before/g)).toHaveLength(4);
    expect(again.stderr).toMatch(/goes on from step 2/);
    expect(statSync(job).mtimeMs).toBe(written);
  });

  it("says what is wrong", async () => {
    await expect(run("nothing")).rejects.toMatchObject({
      code: 1,
      stdout: expect.stringContaining("no experiment nothing"),
    });
    const missing = ["gating", "--data", join(folder, "missing"), "--out", join(folder, "missing-out")];
    await expect(run(...missing)).rejects.toMatchObject({
      code: 1,
      stderr: expect.stringContaining("no prepared text"),
    });
    await expect(run("recall", "--seeds", "0")).rejects.toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/--seeds/),
    });
    await expect(run("--report", folder)).rejects.toMatchObject({ code: 1 });
  });
});
