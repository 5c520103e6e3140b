import { execFileSync } from "node:child_process";
import { afterEach, describe, expect, test, vi } from "vitest";
import { mayHaveGpu } from "../src/devices/webgpu/adapter.js";

afterEach(() => {
  vi.unstubAllGlobals();
  vi.unstubAllEnvs();
});

/** A fresh copy of the module, which has not chosen yet, where the page's WebGPU has an adapter of this name or none. */
async function chooseWith(info: Partial<GPUAdapterInfo> | undefined) {
  vi.stubGlobal("navigator", { gpu: { requestAdapter: async () => (info ? { info } : null) } });
  vi.resetModules();
  return import("../src/devices/get-device.js");
}

const H200 = { vendor: "nvidia", architecture: "hopper", description: "NVIDIA H200", isFallbackAdapter: false };

describe("the default device", () => {
  test("is webgpu where there is a GPU", async () => {
    const { defaultDevice } = await chooseWith(H200);
    expect(await defaultDevice()).toEqual({ kind: "webgpu", reason: "NVIDIA H200 is a GPU" });
  });

  test.each([
    ["llvmpipe", { vendor: "mesa", architecture: "software", device: "llvmpipe-llvm-19-1-7-256-bits-" }],
    ["SwiftShader in a page", { vendor: "google", architecture: "swiftshader" }],
    ["Windows' own", { description: "Microsoft Basic Render Driver" }],
    ["whatever says so", { vendor: "new", description: "new", isFallbackAdapter: true }],
  ])("is wasm where the GPU is made of software: %s", async (_, info) => {
    const { defaultDevice, getDevice } = await chooseWith(info);
    expect(await defaultDevice()).toEqual({
      kind: "wasm",
      reason: expect.stringMatching(/ is a GPU made of software/),
    });
    expect((await getDevice()).kind).toBe("wasm");
  });

  test("is wasm without an adapter", async () => {
    const { defaultDevice, getDevice } = await chooseWith(undefined);
    expect(await defaultDevice()).toMatchObject({ kind: "wasm" });
    expect(await getDevice()).toBe(await getDevice("wasm"));
    await expect(getDevice("webgpu")).rejects.toThrow(/getDevice: "webgpu" needs an adapter.*getDevice\("wasm"\)/);
  });

  test("is what the environment names", async () => {
    vi.stubEnv("POWER_ATTENTION_DEVICE", "oracle");
    const named = await chooseWith(H200);
    expect((await named.getDevice()).kind).toBe("oracle");
    vi.stubEnv("POWER_ATTENTION_DEVICE", "cuda");
    const unknown = await chooseWith(H200);
    await expect(unknown.getDevice()).rejects.toThrow(/POWER_ATTENTION_DEVICE must be .*"webgpu", got "cuda"/);
  });

  test("is the kind that has the option", async () => {
    const { getDevice } = await chooseWith(H200);
    expect((await getDevice(undefined, { threads: 1 })).description).toMatch(/^wasm \(1 thread,/);
    const gone = {} as GPUDevice;
    await expect(getDevice(undefined, { device: gone, boundsChecks: false })).rejects.toThrow(/boundsChecks/);
  });

  test("loads no GPU library where Linux has no GPU", (context) => {
    if (mayHaveGpu()) return context.skip("this machine has a GPU");
    const script = `
      const { getDevice } = await import(${JSON.stringify(new URL("../dist/src/index.js", import.meta.url).href)});
      const { readFileSync } = await import("node:fs");
      console.log((await getDevice()).kind, /dawn/.test(readFileSync("/proc/self/maps", "utf8")));`;
    expect(String(execFileSync(process.execPath, ["--input-type=module", "-e", script]))).toBe("wasm false\n");
  });
});

describe("bounds checks", () => {
  test("are not ours to turn off in a page, or on a caller's device", async () => {
    const { getDevice } = await chooseWith(H200);
    await expect(getDevice("webgpu", { boundsChecks: false })).rejects.toThrow(
      /boundsChecks: false needs a WebGPU that the library starts itself.*navigator\.gpu; leave boundsChecks out/,
    );
    await expect(getDevice("webgpu", { device: {} as GPUDevice, boundsChecks: false })).rejects.toThrow(
      /boundsChecks: false needs a device that the library makes itself, got options\.device/,
    );
  });
});
