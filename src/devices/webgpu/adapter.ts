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
 * Dawn's instance. It must never be collected while any GPU work lives: the process would die at random, in a
 * segmentation fault or a failed mutex. It stays here for the life of the process.
 */
let dawn: Promise<GPU | undefined> | undefined;

async function startDawn(): Promise<GPU | undefined> {
  if (typeof process === "undefined" || !process.versions?.node) return undefined;
  // A variable, so that bundlers for the browser do not look for the package.
  const name = "webgpu";
  const module = await import(/* @vite-ignore */ /* webpackIgnore: true */ name).catch(() => undefined);
  if (!module) return undefined;
  for (const [key, value] of Object.entries(module.globals)) {
    if (!(key in globalThis)) Object.defineProperty(globalThis, key, { value, configurable: true, writable: true });
  }
  // Timestamps are rounded to 0.1 ms otherwise, a guard that pages need and Node does not.
  return module.create([
    `enable-dawn-features=${DAWN_TOGGLES.join(",")}`,
    "disable-dawn-features=timestamp_quantization",
  ]) as GPU;
}

/** The browser's WebGPU, or Dawn in Node where the package `webgpu` is installed. */
export async function findGpu(): Promise<GPU | undefined> {
  const browser = (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu;
  if (browser) return browser;
  dawn ??= startDawn();
  return dawn;
}

export async function findAdapter(powerPreference?: GPUPowerPreference): Promise<GPUAdapter | undefined> {
  const gpu = await findGpu();
  // No preference picks by itself on machines with one GPU; on others the strong one is wanted.
  return (await gpu?.requestAdapter({ powerPreference: powerPreference ?? "high-performance" })) ?? undefined;
}

/** A device with every feature and limit of the adapter that kernels can use. */
export async function requestDevice(adapter: GPUAdapter): Promise<GPUDevice> {
  return adapter.requestDevice({
    requiredFeatures: FEATURES.filter((feature) => adapter.features.has(feature)) as GPUFeatureName[],
    requiredLimits: Object.fromEntries(LIMITS.map((name) => [name, adapter.limits[name]])),
  });
}

/** One line for people. */
export function describeAdapter(info: GPUAdapterInfo | undefined): string {
  const parts = [info?.description, [info?.vendor, info?.architecture].filter(Boolean).join(" "), info?.device];
  return parts.find((part) => part) ?? "unnamed adapter";
}
