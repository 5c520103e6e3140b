import type { Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { PowerOptions } from "../src/index.js";
import type { DType } from "../src/tensor/dtype.js";
import type { Report } from "./browser/page.js";
import { executablePath, missing, type Pages, startPages } from "./browser/pages.js";
import { TOLERANCE } from "./tolerances.js";

type Compare = (dtype: DType, options: PowerOptions, threads?: number) => Promise<Report>;

describe.skipIf(missing)(`in a page (${missing ? "skipped, no Chromium at " : ""}${executablePath})`, () => {
  let pages: Pages;
  beforeAll(async () => {
    pages = await startPages("page.ts", ["--disable-gpu"]);
  });
  afterAll(() => pages?.close());
  const open = (query: string) => pages.open(query);

  const compare = (page: Page, ...args: Parameters<Compare>): Promise<Report> =>
    page.evaluate((values) => (globalThis as unknown as { compare: Compare }).compare(...values), args);

  function expectWithin(report: Report, dtype: Exclude<DType, "i32">): void {
    expect(report.output).toBeLessThan(TOLERANCE.output[dtype]);
    expect(report.gradient).toBeLessThan(TOLERANCE.gradient[dtype]);
    expect(report.gradient).toBeGreaterThan(0);
  }

  test("cross-origin isolated: worker threads, and the oracle's results", async () => {
    const page = await open("isolated");
    for (const dtype of ["f32", "bf16"] as const) {
      const report = await compare(page, dtype, { degree: 2, chunkSize: 64 }, 3);
      expect(report).toMatchObject({ isolated: true, description: expect.stringMatching(/^wasm \(3 threads,/) });
      expectWithin(report, dtype);
    }
    expect(page.workers()).toHaveLength(4);
    await page.close();
  });

  test("not isolated: one thread, the same results, whatever was asked for", async () => {
    const page = await open("");
    for (const threads of [undefined, 3]) {
      const report = await compare(page, "f32", { degree: 2, chunkSize: 64 }, threads);
      expect(report).toMatchObject({ isolated: false, description: expect.stringMatching(/^wasm \(1 thread,/) });
      expectWithin(report, "f32");
    }
    expect(page.workers()).toHaveLength(0);
    await page.close();
  });

  test("in a worker of an isolated page, which may block", async () => {
    const page = await open("isolated");
    const report = await page.evaluate(
      (args) =>
        new Promise<Report | string>((resolve, reject) => {
          const worker = new Worker("/page.js?isolated", { type: "module" });
          worker.onmessage = ({ data }) => resolve(data);
          worker.onerror = ({ message }) => reject(new Error(message));
          worker.postMessage(args);
        }),
      ["f32", { degree: 3, chunkSize: 32 }, 2] as Parameters<Compare>,
    );
    expect(report).toMatchObject({ isolated: true, description: expect.stringMatching(/^wasm \(2 threads,/) });
    expectWithin(report as Report, "f32");
    await page.close();
  });

  test("a policy that forbids blob: workers is named, and one thread is the way out", async () => {
    const page = await open("isolated&policy");
    await expect(compare(page, "f32", {}, 2)).rejects.toThrow(
      /getDevice: worker threads must be able to start from a blob: URL, got .*; allow worker-src blob:.*threads: 1/,
    );
    const report = await compare(page, "f32", {}, 1);
    expect(report.description).toMatch(/^wasm \(1 thread,/);
    expectWithin(report, "f32");
    await page.close();
  });
});
