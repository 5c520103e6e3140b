import { nodeModule } from "../node.js";

/** What we ask of a device of our own, where the adapter has it. */
const FEATURES = ["shader-f16", "subgroups", "chromium-experimental-subgroup-matrix", "timestamp-query"];

const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupSizeY",
  "maxComputeWorkgroupSizeZ",
] as const;

/** Subgroup matrices need the first; f16 on NVIDIA's Vulkan the second. */
const DAWN_TOGGLES = ["allow_unsafe_apis", "vulkan_enable_f16_on_nvidia"];

/**
 * Dawn's instances, by their toggles. They must never be collected while any GPU work lives: the process would die at
 * random, in a segmentation fault or a failed mutex. They stay here for the life of the process.
 */
const instances = new Map<string, Promise<GPU | undefined>>();

async function startDawn(toggles: string): Promise<GPU | undefined> {
  if (typeof process === "undefined" || !process.versions?.node) return undefined;
  // A variable, so that bundlers for the browser do not look for the package.
  const name = "webgpu";
  const module = await import(/* @vite-ignore */ /* webpackIgnore: true */ name).catch(() => undefined);
  if (!module) return undefined;
  for (const [key, value] of Object.entries(module.globals)) {
    if (!(key in globalThis)) Object.defineProperty(globalThis, key, { value, configurable: true, writable: true });
  }
  // Timestamps are rounded to 0.1 ms otherwise, a guard that pages need and Node does not.
  return module.create([`enable-dawn-features=${toggles}`, "disable-dawn-features=timestamp_quantization"]) as GPU;
}

function browserGpu(): GPU | undefined {
  return (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu;
}

/** What of a device is settled before there is an adapter. */
export interface AdapterOptions {
  powerPreference?: GPUPowerPreference;
  /** Default true. */
  boundsChecks?: boolean;
}

/**
 * The browser's WebGPU, or Dawn in Node where the package `webgpu` is installed.
 * @throws Error where bounds checks are to be off and the WebGPU is not ours to configure
 */
async function findGpu(boundsChecks: boolean): Promise<GPU | undefined> {
  const browser = browserGpu();
  if (browser) {
    if (boundsChecks) return browser;
    throw new Error(
      "getDevice: boundsChecks: false needs a WebGPU that the library starts itself, through the package webgpu in Node, " +
        "got the one in navigator.gpu; leave boundsChecks out",
    );
  }
  const toggles = [...DAWN_TOGGLES, ...(boundsChecks ? [] : ["disable_robustness"])].join(",");
  if (!instances.has(toggles)) instances.set(toggles, startDawn(toggles));
  return instances.get(toggles);
}

export async function findAdapter(options: AdapterOptions = {}): Promise<GPUAdapter | undefined> {
  const { powerPreference = "high-performance", boundsChecks = true } = options;
  const gpu = await findGpu(boundsChecks);
  // No preference picks by itself on machines with one GPU; on others the strong one is wanted.
  return (await gpu?.requestAdapter({ powerPreference })) ?? undefined;
}

/**
 * Whether there can be a GPU: on Linux, whether its driver put a file into /dev. Asking Dawn instead would cost each
 * process on a machine without one a tenth of a second, and warnings of the Vulkan loader.
 */
export function mayHaveGpu(): boolean {
  if (browserGpu() || typeof process === "undefined" || process.platform !== "linux") return true;
  const files = nodeModule("node:fs")?.readdirSync("/dev") ?? [];
  return files.some((name) => /^(dri|dxg|kfd|kgsl|mali|nvidia)/.test(name));
}

/** Whether an adapter is a processor that plays a GPU: wasm is faster there. */
export function isSoftware(info: GPUAdapterInfo | undefined): boolean {
  const names = [info?.description, info?.vendor, info?.architecture, info?.device].join(" ");
  // The flag is missing from older browsers.
  return info?.isFallbackAdapter === true || /llvmpipe|lavapipe|swiftshader|basic render/i.test(names);
}

/** A device with every feature and limit of the adapter that kernels can use. */
export async function requestDevice(adapter: GPUAdapter): Promise<GPUDevice> {
  return adapter.requestDevice({
    requiredFeatures: FEATURES.filter((feature) => adapter.features.has(feature)) as GPUFeatureName[],
    requiredLimits: Object.fromEntries(LIMITS.map((name) => [name, adapter.limits[name]])),
  });
}

/**
 * What a device made elsewhere tells of its adapter. Dawn in Node leaves the shapes of subgroup matrices out there, so they
 * are asked of an adapter of the same name.
 */
export async function infoOf(device: GPUDevice): Promise<GPUAdapterInfo | undefined> {
  const info = (device as { adapterInfo?: GPUAdapterInfo & { subgroupMatrixConfigs?: unknown[] } }).adapterInfo;
  const hasMatrices = (device.features as ReadonlySet<string>).has("chromium-experimental-subgroup-matrix");
  if (!info || !hasMatrices || info.subgroupMatrixConfigs?.length) return info;
  const alike = (await findAdapter())?.info;
  const names = ["vendor", "architecture", "device", "description"] as const;
  return alike && names.every((name) => alike[name] === info[name]) ? alike : info;
}

/** One line for people. */
export function describeAdapter(info: GPUAdapterInfo | undefined): string {
  const parts = [info?.description, [info?.vendor, info?.architecture].filter(Boolean).join(" "), info?.device];
  return parts.find((part) => part) ?? "unnamed adapter";
}
