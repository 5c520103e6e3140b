import type { Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { calls } from "./browser/gpu-page.js";
import { executablePath, missing, type Pages, startPages } from "./browser/pages.js";
import { attentionTolerance, degreeAllowance } from "./tolerances.js";

/** SwiftShader: a GPU made of software in Chromium, with subgroups of 4 and without f16. */
const SWIFTSHADER = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];

type Calls = typeof calls;

const limit = (what: "output" | "gradient", degree = 2) =>
  degreeAllowance(degree) * attentionTolerance("webgpu", "f32", what);

describe.skipIf(missing)(`webgpu in a page (${missing ? "skipped, no Chromium at " : ""}${executablePath})`, () => {
  let pages: Pages;
  let page: Page;
  beforeAll(async () => {
    pages = await startPages("gpu-page.ts", SWIFTSHADER);
    page = await pages.open();
  });
  afterAll(() => pages?.close());

  const call = <K extends keyof Calls>(
    name: K,
    ...args: Parameters<Calls[K]>
  ): Promise<Awaited<ReturnType<Calls[K]>>> =>
    page.evaluate(
      ([name, args]) =>
        (globalThis as unknown as { calls: Record<string, (...a: unknown[]) => never> }).calls[name](...args),
      [name, args] as const,
    );

  test("runs with the least that WebGPU grants; wasm is the default beside a GPU made of software", async () => {
    const { limits, features, description, own, byDefault, chosen } = await call("facts");
    expect(limits).toEqual([8, 16384, 256]);
    expect(features).not.toContain("shader-f16");
    expect(description).toMatch(/^webgpu \(.*swiftshader\)$/);
    expect(own).toMatch(/^webgpu \(.*swiftshader, subgroups\)$/);
    expect(byDefault).toEqual({ kind: "wasm", reason: expect.stringMatching(/swiftshader is a GPU made of software/) });
    expect(chosen).toBe("wasm");
  });

  test.each([
    [1, 32],
    [1, null],
    [2, 32],
    [2, null],
    [3, 64],
    [3, null],
  ])("power attention, degree %i, chunkSize %s: outputs and gradients are the oracle's", async (degree, chunkSize) => {
    const errors = await call("power", degree, chunkSize);
    expect(errors.output).toBeLessThan(limit("output", degree));
    expect(errors.gradient).toBeLessThan(limit("gradient", degree));
    expect(errors.gradient).toBeGreaterThan(0);
  });

  test("power attention on a device of our own", async () => {
    // In one chunk: compiling the kernels of chunks once more would take a quarter of a minute.
    const errors = await call("power", 2, null, true);
    expect(errors.output).toBeLessThan(limit("output"));
    expect(errors.gradient).toBeLessThan(limit("gradient"));
  });

  test("softmax attention", async () => {
    const errors = await call("softmax");
    expect(errors.output).toBeLessThan(limit("output"));
    expect(errors.gradient).toBeLessThan(limit("gradient"));
  });

  test("states carry a sequence on, in parts and token by token", async () => {
    const errors = await call("carried", 70);
    for (const error of Object.values(errors)) expect(error).toBeLessThan(4 * limit("output"));
  });

  test("a GPT learns and writes as on wasm", async () => {
    const { webgpu, wasm } = await call("gpt");
    expect(webgpu.losses[0]).toBeGreaterThan(5);
    expect(webgpu.losses.at(-1)).toBeLessThan(2.5);
    for (const [step, loss] of webgpu.losses.entries()) expect(loss).toBeCloseTo(wasm.losses[step], 2);
    expect(webgpu.text).toBe(wasm.text);
    expect(webgpu.tokens).toBe(20);
  });

  test("buffers are shared with a caller's device", async () => {
    expect(await call("buffers")).toEqual([10, 20, 30]);
  });

  test("a lost device rejects pending work with the cause, and is made anew", async () => {
    const { errors, other, works } = await call("lose");
    expect(errors[0]).toMatch(/the device was lost \(destroyed/);
    expect(errors[1]).toMatch(/getDevice\("webgpu"\) makes a new one/);
    expect(other).toBe(true);
    expect(works).toBe(0);
  });

  test("refuses in words", async () => {
    const [gates, checks] = await call("refusals");
    expect(gates).toMatch(/RangeError: powerFull: logG must hold .* got 0.5 at \[0, 2, 0\]/);
    expect(checks).toMatch(/boundsChecks: false needs a WebGPU that the library starts itself/);
  });
});
