import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { createContext, Script } from "node:vm";
import { build, transform } from "esbuild";
import { beforeAll, describe, expect, test } from "vitest";
import * as api from "../src/index.js";

const run = promisify(execFile);
const root = fileURLToPath(new URL("..", import.meta.url));

/** These tests look at what is installed: dist, which must be no older than the source. */
beforeAll(async () => {
  const sources = (await readdir(join(root, "src"), { recursive: true })).filter((name) => name.endsWith(".ts"));
  const times = await Promise.all(sources.map(async (name) => (await stat(join(root, "src", name))).mtimeMs));
  const built = await stat(join(root, "dist/src/index.js")).catch(() => undefined);
  if (!built || built.mtimeMs < Math.max(...times)) throw new Error("dist is older than src: npm run build");
});

test("the entry point exports what the documentation names", () => {
  expect(Object.keys(api).sort()).toEqual(
    [
      ...["powerFull", "powerAttention", "PowerState", "softmaxAttention", "chooseChunkSize"],
      ...["chunkState", "stateScan", "chunkAttention", "queryState", "featureMap", "expandedDim"],
      ...["getDevice", "fromGPUBuffer", "gpuBuffer", "Tensor", "tensor", "zeros", "ones", "randn", "uniform"],
      ...["manualSeed", "defaultGenerator", "Generator", "noGrad", "scope", "Scope"],
      ...["add", "sub", "mul", "div", "equal", "matmul", "sum", "mean", "max", "sumTo"],
      ...["neg", "exp", "log", "sqrt", "abs", "square", "tanh", "sigmoid", "logSigmoid", "relu", "gelu", "silu"],
      ...["cast", "concat", "contiguous", "full", "pad"],
    ].sort(),
  );
});

test("the quickstart runs and prints shapes, device, threads and time", async () => {
  const { stdout } = await run(process.execPath, ["dist/examples/quickstart.js"], {
    cwd: root,
    env: { ...process.env, POWER_ATTENTION_DEVICE: "wasm", POWER_ATTENTION_THREADS: "2" },
  });
  expect(stdout).toMatch(/device +wasm \(2 threads, 128-bit (relaxed )?SIMD\)/);
  expect(stdout).toMatch(/output +\[2, 1024, 8, 64\] bf16/);
  expect(stdout).toMatch(/gradient of q +\[2, 1024, 8, 64\] bf16/);
  expect(stdout).toMatch(/forward +\d+ ms/);
  expect(stdout).toMatch(/backward +\d+ ms/);
  expect(stdout).not.toContain("NaN");
});

/** A folder where the package is installed. */
async function consumer<T>(use: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), "power-attention-"));
  try {
    await mkdir(join(folder, "node_modules"));
    await symlink(root, join(folder, "node_modules/power-attention"), "dir");
    await writeFile(join(folder, "package.json"), JSON.stringify({ type: "module" }));
    return await use(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

test("the README's examples run as they stand", async () => {
  const readme = await readFile(join(root, "README.md"), "utf8");
  const examples = [...readme.matchAll(/^```ts\n(.*?)^```/gms)].map(([, code]) => code);
  expect(examples.length).toBeGreaterThanOrEqual(3);
  const outputs = await consumer(async (folder) => {
    const all: string[] = [];
    for (const [k, code] of examples.entries()) {
      const { code: script } = await transform(code, { loader: "ts", target: "es2022" });
      await writeFile(join(folder, `example${k}.js`), script);
      all.push((await run(process.execPath, [`example${k}.js`], { cwd: folder })).stdout);
    }
    return all;
  });
  expect(outputs[0]).toMatch(/^\[ 2, 1024, 8, 64 \] Float32Array\(1048576\)/);
  expect(outputs[1]).toMatch(/^100 \d+\n100\n$/);
  expect(outputs[2]).toMatch(/^\{ used: \d+, peak: \d+, reserved: \d+ \}\n$/);
});

async function bundle(contents: string, format: "esm" | "iife" = "esm") {
  const { outputFiles, metafile } = await build({
    stdin: { contents, resolveDir: root },
    bundle: true,
    format,
    platform: "browser",
    target: "es2022",
    minify: true,
    write: false,
    metafile: true,
    logLevel: "silent",
    globalName: "library",
  });
  const [{ imports, inputs }] = Object.values(metafile.outputs);
  const used = Object.keys(inputs).filter((name) => inputs[name].bytesInOutput > 0);
  return { text: outputFiles[0].text, used, inputs: Object.keys(metafile.inputs), imports };
}

describe("bundles for pages", () => {
  test("one function brings one function", async () => {
    const { text, used } = await bundle('export { expandedDim } from "power-attention"');
    expect(used).toEqual(["dist/src/feature-map.js"]);
    expect(text.length).toBeLessThan(2000);
    const { expandedDim } = await import(`data:text/javascript,${encodeURIComponent(text)}`);
    expect(expandedDim(64, 2)).toBe(2080);
  });

  test("everything is the package's own", async () => {
    const { inputs, imports } = await bundle('export * from "power-attention"');
    expect(inputs.length).toBeGreaterThan(50);
    expect(inputs.filter((name) => name !== "<stdin>" && !name.startsWith("dist/src/"))).toEqual([]);
    expect(imports).toEqual([]);
  });

  test("an engine without Symbol.dispose, process and workers still computes gradients", async () => {
    const { text } = await bundle('export * from "power-attention"', "iife");
    // A context of its own has the language and what is listed here. Node itself adds Symbol.dispose to its own only.
    const context = createContext({ WebAssembly, TextEncoder, TextDecoder, SharedArrayBuffer: undefined });
    new Script(text).runInContext(context);
    const dq = await new Script(`(async () => {
      const { getDevice, randn, powerFull } = library;
      const device = await getDevice();
      const like = { device, requiresGrad: true };
      const [q, k, v] = [1, 2, 3].map((seed) => randn([1, 20, 1, 4], { ...like, seed }));
      powerFull(q, k, v).sum().backward();
      return { description: device.description, finite: (await q.grad.data()).every(Number.isFinite) };
    })()`).runInContext(context);
    expect({ ...dq }).toEqual({ description: expect.stringMatching(/^wasm \(1 thread,/), finite: true });
  });
});

describe("the package", () => {
  test("holds the compiled library, its types and its documents, and nothing else", async () => {
    const { stdout } = await run("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: root });
    const files: string[] = JSON.parse(stdout)[0].files.map((file: { path: string }) => file.path);
    expect(files).toContain("dist/src/index.js");
    expect(files).toContain("dist/src/index.d.ts");
    for (const name of ["README.md", "LICENSE", "CHANGELOG.md", "docs/math.md"]) expect(files).toContain(name);
    expect(files.filter((name) => /\.test\.|dist\/(test|bench|examples)/.test(name))).toEqual([]);
    expect(
      files.filter((name) => !/^(dist\/src\/|docs\/|(README|CHANGELOG)\.md$|LICENSE$|package\.json$)/.test(name)),
    ).toEqual([]);
  });

  const program = `
    import { getDevice, PowerState, powerFull, randn, type Device, type PowerOptions, type Tensor } from "power-attention";
    const device: Device = await getDevice("oracle");
    const q: Tensor = randn([1, 8, 2, 4], { device });
    const options = { degree: 2, chunkSize: null } satisfies PowerOptions;
    const out: Tensor = powerFull(q, q, q, options);
    const { output, finalState } = powerFull(q, q, q, { returnFinalState: true });
    const shapes: (readonly number[])[] = [out.shape, output.shape, finalState.s.shape];
    const moved: Promise<Tensor> = q.to(device);
    const state = PowerState.empty({ device, batch: 1, kvHeads: 2, headDim: 4 });
    // @ts-expect-error values are needed
    powerFull(q, q);
    // @ts-expect-error no such option
    powerFull(q, q, q, { power: 2 });
    export { moved, shapes, state };
  `;

  test.each([
    { module: "NodeNext", moduleResolution: "NodeNext" },
    { module: "ESNext", moduleResolution: "Bundler" },
  ])("is typed under moduleResolution $moduleResolution, declarations included", async (resolution) => {
    const result = await consumer(async (folder) => {
      await writeFile(join(folder, "index.ts"), program);
      const lib = ["ES2023", "ESNext.Disposable", "DOM"];
      const compilerOptions = { ...resolution, target: "ES2022", lib, types: [], strict: true, noEmit: true };
      await writeFile(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, files: ["index.ts"] }));
      const { bin } = JSON.parse(await readFile(join(root, "node_modules/typescript/package.json"), "utf8"));
      const tsc = join(root, "node_modules/typescript", bin.tsc);
      return run(process.execPath, [tsc, "-p", folder]).catch((error) => error);
    });
    expect(`${result.stdout}${result.stderr}`).toBe("");
  });
});
