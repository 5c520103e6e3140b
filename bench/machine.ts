import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism, cpus } from "node:os";
import type { WebGpuDevice } from "../src/devices/webgpu/device.js";

/** What figures of a GPU depend on. */
export interface GpuDescription {
  adapter: string;
  vendor: string;
  driver: string;
  features: string[];
  /** Rows, columns and inner length of the products that the kernels use; "none" for the portable ones. */
  matrixUnits: string;
  timestamps: boolean;
  boundsChecks: boolean;
}

export const cpuName = () => `${cpus()[0]?.model.trim() ?? "unknown CPU"} × ${availableParallelism()}`;

/** The version of an installed package, or undefined where it is not installed. */
export function packageVersion(name: string): string | undefined {
  try {
    return JSON.parse(readFileSync(createRequire(import.meta.url).resolve(`${name}/package.json`), "utf8")).version;
  } catch {
    return undefined;
  }
}

/** Node, its engine, and Dawn where the GPU is used. */
export function versions(gpu: boolean): Record<string, string> {
  const { node, v8 } = process.versions;
  return { node, v8, ...(gpu ? { webgpu: packageVersion("webgpu") ?? "not a package" } : {}) };
}

/** NVIDIA's kernel module knows the driver's version; Vulkan's description of it may be empty. */
function nvidiaDriver(): string | undefined {
  try {
    return /Kernel Module.*?\s(\d+[.\d]+)\s/.exec(readFileSync("/proc/driver/nvidia/version", "utf8"))?.[1];
  } catch {
    return undefined;
  }
}

export function describeGpu({ gpu, matrixUnits }: WebGpuDevice, boundsChecks = true): GpuDescription {
  const info: Partial<GPUAdapterInfo> = (gpu as { adapterInfo?: GPUAdapterInfo }).adapterInfo ?? {};
  const driver = [info.description, info.vendor === "nvidia" ? nvidiaDriver() : undefined];
  return {
    adapter: info.device || info.description || "unnamed adapter",
    vendor: [info.vendor, info.architecture].filter(Boolean).join(" "),
    driver: driver.filter((part, k) => part && driver.indexOf(part) === k).join("; ") || "unknown",
    features: [...gpu.features].sort(),
    matrixUnits: matrixUnits ? `${matrixUnits.M}×${matrixUnits.N}×${matrixUnits.K}` : "none",
    timestamps: gpu.features.has("timestamp-query"),
    boundsChecks,
  };
}

/** The version of what was measured; `given` stands in where there is no git checkout. */
export function commit(given: string | undefined): string {
  if (given !== undefined) return given;
  try {
    const git = (...args: string[]) =>
      execFileSync("git", args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
    const changed = git("status", "--porcelain", "--untracked-files=no").trim() === "" ? "" : " with changes";
    return git("rev-parse", "--short", "HEAD").trim() + changed;
  } catch {
    return "unknown";
  }
}
