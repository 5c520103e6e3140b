import { execFile } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, afterEach, expect, test, vi } from "vitest";
import { getDevice } from "../src/devices/get-device.js";
import type { WebGpuDevice } from "../src/devices/webgpu/device.js";
import { type TunedTiles, tileProblem } from "../src/devices/webgpu/legal-tiles.js";
import { matricesOf } from "../src/devices/webgpu/matrix-text.js";
import { softmaxAttention } from "../src/ops/softmax-attention/index.js";
import { randn } from "../src/tensor/create.js";
import { saveTiles, tune } from "../src/tune/index.js";
import { DISPATCHES } from "../src/tune/problems.js";
import { type Problem, solve } from "./attention.js";
import { expectClose } from "./compare.js";
import { describeOnGpu, hasAdapter } from "./devices.js";
import { workgroupBytes } from "./workgroup-bytes.js";

const device = hasAdapter ? ((await getDevice("webgpu", { tiles: false })) as WebGpuDevice) : undefined;
const folder = mkdtempSync(join(tmpdir(), "tune-test-"));
const main = fileURLToPath(new URL("../dist/src/cli/main.js", import.meta.url));

afterEach(() => vi.unstubAllEnvs());
afterAll(() => rmSync(folder, { recursive: true }));

function run(...args: string[]) {
  const { POWER_ATTENTION_TILES: _, ...env } = process.env;
  return promisify(execFile)(process.execPath, [main, "tune", ...args], { env: { ...env, XDG_CACHE_HOME: folder } });
}

test("tune says what it needs where there is nothing to tune", async () => {
  const failed = await run("--device", "wasm").catch((error) => error);
  expect(failed.code).toBe(1);
  expect(failed.stderr).toMatch(/error: tune: only a webgpu device with matrix units .* got wasm \(/);
  expect(existsSync(join(folder, "power-attention"))).toBe(false);
});

const LIMITS = { maxComputeInvocationsPerWorkgroup: 1024, maxComputeWorkgroupSizeX: 1024 };

/** The numbers below are for its shapes, and a search there takes seconds. */
const plays = device?.matrixUnits?.subgroupSize === 8;

describeOnGpu("tiles on webgpu", () => {
  const known: TunedTiles = { gradient: { down: 1 } };
  const path = join(folder, "power-attention", "tiles.json");
  const write = (content: string | TunedTiles, adapter = device!.adapter) => {
    const file =
      typeof content === "string" ? content : JSON.stringify({ version: 1, adapters: { [adapter]: content } });
    mkdirSync(join(folder, "power-attention"), { recursive: true });
    writeFileSync(path, file);
  };
  const loaded = async (options?: { tiles?: string | false; device?: GPUDevice }) => {
    const made = (await getDevice("webgpu", options ?? {})) as WebGpuDevice;
    made.dispose();
    return made.tuned;
  };

  test.runIf(plays)("are loaded from the usual file, from another, or not at all", async () => {
    vi.stubEnv("POWER_ATTENTION_TILES", undefined);
    vi.stubEnv("XDG_CACHE_HOME", folder);
    rmSync(path, { force: true });
    expect(await loaded()).toEqual({});
    write(known);
    expect(await loaded()).toEqual(known);
    expect(await loaded({ tiles: false })).toEqual({});
    expect(await loaded({ device: device!.gpu })).toEqual({});
    write(known, "another adapter");
    expect(await loaded()).toEqual({});
    write(known);
    vi.stubEnv("POWER_ATTENTION_TILES", "");
    expect(await loaded()).toEqual({});
    expect(await loaded({ tiles: path })).toEqual(known);
    await expect(loaded({ tiles: join(folder, "missing.json") })).rejects.toThrow(
      /tiles must name a file.*missing\.json.*tune --out/,
    );
  });

  test.runIf(plays).each([
    ["no JSON", "{", /must be JSON, got/],
    ["of another version", '{"version":2,"adapters":{}}', /must have version 1, got 2/],
    ["something else", '{"version":1,"adapters":[]}', /must hold tiles by adapter/],
    ["an unknown kernel", { convolve: { down: 1 } }, /convolve: a kernel with a tile must be one of .* got convolve/],
    ["an illegal tile", { pairs: { rows: 32, keys: 48, down: 4 } }, /pairs: keys must divide 32, got 48/],
  ])("of a file that is %s are refused", async (_, content, problem) => {
    vi.stubEnv("POWER_ATTENTION_TILES", path);
    write(content as string | TunedTiles);
    const error: Error = await loaded().then(
      () => expect.fail("was loaded"),
      (error) => error,
    );
    expect(error.message).toMatch(problem);
    expect(error.message).toContain(path);
    expect(error.message).toMatch(/delete the file, run power-attention tune again, or pass tiles: false/);
  });

  test.runIf(plays)("of unusual numbers give the table's results", async () => {
    const problem: Problem = {
      ...{ batch: 1, time: 150, queryHeads: 4, heads: 2, headDim: 16, valueDim: 16, degree: 2 },
      ...{ gated: true, dtype: "bf16", options: { chunkSize: 40 } },
    };
    const [a, b] = [1, 2].map((seed) => randn([56, 56], { device: device!, dtype: "f16", seed }));
    const softmax = async () => {
      const [q, k, v, upstream] = [3, 4, 5, 6].map((seed) =>
        randn([1, 70, 2, 16], { device: device!, dtype: "bf16", seed, requiresGrad: seed < 6 }),
      );
      const output = softmaxAttention(q, k, v);
      output.backward(upstream);
      return { softmax: await output.data(), softmaxQ: await q.grad!.data(), softmaxK: await k.grad!.data() };
    };
    const results = async () => ({
      ...{ ...(await solve(device!, problem)), ...(await softmax()) },
      product: await a.matmul(b).data(),
    });
    const wanted = await results();
    const tiles: TunedTiles = {
      accumulate: { groups: 3, steps: 8, down: 3, across: 3 },
      read: { tokens: 48, down: 3, across: 3 },
      pairs: { rows: 24, keys: 8, down: 3 },
      pairsQueries: { rows: 8, keys: 8, down: 1 },
      pairsKeys: { rows: 24, queries: 16, down: 3 },
      square: { down: 3, tokens: 2, octets: 2 },
      softmax: { rows: 16, keys: 16, down: 1, across: 2 },
      softmaxQueries: { rows: 16, keys: 32, down: 2, across: 2 },
      softmaxKeys: { rows: 32, queries: 32, down: 2, across: 2 },
      matmul: { rows: 48, columns: 24, steps: 16, down: 3, across: 1 },
    };
    const units = matricesOf(device!.matrixUnits!);
    for (const [kernel, tile] of Object.entries(tiles)) {
      expect(tileProblem(kernel, tile, units, device!.gpu.limits), kernel).toBeUndefined();
    }
    const compiled = vi.spyOn(device!.gpu, "createShaderModule");
    Object.assign(device!.tuned, tiles);
    try {
      const found: Record<string, ArrayLike<number>> = await results();
      for (const [name, values] of Object.entries(wanted)) expectClose(name, found[name], values, 2 ** -7);
      // Each kernel was made anew, with workgroup memory of the size that is counted on.
      for (const [kernel, tile] of Object.entries(tiles)) {
        const texts = compiled.mock.calls.filter(([{ label }]) => DISPATCHES[kernel].test(label!));
        expect(texts.length, kernel).toBeGreaterThan(0);
        const bytes = Math.max(...texts.map(([{ code }]) => workgroupBytes(code)));
        expect(bytes, kernel).toBeGreaterThan(0);
        const sizes = { x: 2, y: kernel.startsWith("softmax") ? 2 : 3, sumAt: 2 };
        const fits = (most: number) => {
          const limits = { ...LIMITS, maxComputeWorkgroupStorageSize: most };
          return tileProblem(kernel, tile, units, limits, sizes) === undefined;
        };
        expect(fits(bytes - 1), `${kernel}, ${bytes} bytes`).toBe(false);
        // A product is counted with the longer of its lines.
        if (kernel !== "matmul") expect(fits(bytes), `${kernel}, ${bytes} bytes`).toBe(true);
      }
    } finally {
      compiled.mockRestore();
      for (const kernel of Object.keys(tiles)) delete device!.tuned[kernel];
    }
  });

  test.runIf(plays)("groups of features that no tile divides: as with other tiles", async () => {
    const problem: Problem = {
      ...{ batch: 1, time: 100, queryHeads: 2, heads: 1, headDim: 40, valueDim: 16, degree: 2, seed: 1 },
      ...{ gated: true, dtype: "bf16", options: { chunkSize: 40 } },
    };
    const wanted = await solve(device!, problem);
    device!.tuned.accumulate = { groups: 3, steps: 8, down: 3, across: 3 };
    try {
      const found = await solve(device!, problem);
      for (const [name, values] of Object.entries(wanted)) expectClose(name, found[name], values, 2 ** -7);
    } finally {
      delete device!.tuned.accumulate;
    }
  });

  test.runIf(plays)("the command finds some and writes them, and devices take them", async () => {
    write("{"); // what cannot be used is replaced
    const { stdout, stderr } = await run("--quick", "--kernels", "pairs,square");
    expect(stdout).toMatch(/^pairs: .*\nsquare: .*\nwritten to .*tiles\.json\n$/);
    expect(stderr).toMatch(/pairs: \d+\.\d+ ms, rows \d+ keys \d+ down \d+ \(the table's\)/);
    expect(stderr.match(/ {2}pairs: .* ms/g)!.length).toBeGreaterThan(2);
    expect(stderr).not.toContain("dropped");
    const { version, adapters } = JSON.parse(readFileSync(path, "utf8"));
    expect(version).toBe(1);
    expect(Object.keys(adapters)).toEqual([device!.adapter]);
    expect(await loaded({ tiles: path })).toEqual(adapters[device!.adapter]);
  });

  test.runIf(plays)("of other kernels and adapters stay in a file", async () => {
    write({ ...known, pairs: { rows: 32, keys: 8, down: 4 } }, "another adapter");
    const table = { tile: { rows: 32, keys: 16, down: 4 }, ms: 2 };
    const best = { tile: { rows: 32, keys: 32, down: 4 }, ms: 1 };
    saveTiles(path, device!, [{ kernel: "pairs", table, best }]);
    saveTiles(path, device!, [{ kernel: "square", table, best: table }]);
    const { adapters } = JSON.parse(readFileSync(path, "utf8"));
    expect(adapters).toEqual({
      "another adapter": { ...known, pairs: { rows: 32, keys: 8, down: 4 } },
      [device!.adapter]: { pairs: best.tile },
    });
    saveTiles(path, device!, [{ kernel: "pairs", table, best: table }]);
    expect(await loaded({ tiles: path })).toEqual({});
  });

  test("are not searched for where kernels have none", async () => {
    const portable = await getDevice("webgpu", { portable: true });
    await expect(tune(portable)).rejects.toThrow(/tune: only a webgpu device with matrix units.*got webgpu \(/);
    portable.dispose();
    if (plays) await expect(tune(device!, { kernels: ["paris"] })).rejects.toThrow(/kernels must be among .*got paris/);
  });
});
