import type { Device, DeviceKind } from "./device.js";
import { OracleDevice } from "./oracle.js";
import { WasmDevice, type WasmOptions } from "./wasm/device.js";
import { describeAdapter, findAdapter, isSoftware, mayHaveGpu } from "./webgpu/adapter.js";
import { WebGpuDevice, type WebGpuOptions } from "./webgpu/device.js";

export type DeviceOptions = WasmOptions & WebGpuOptions;

const KINDS: readonly DeviceKind[] = ["wasm", "webgpu", "oracle"];

/** Options that only a GPU has. */
const OF_WEBGPU = ["device", "powerPreference", "portable", "boundsChecks", "tiles"] as const;

const made = new Map<DeviceKind, Promise<Device>>();

let choice: Promise<{ kind: DeviceKind; reason: string }> | undefined;

/**
 * Which kind `getDevice()` takes on this machine, and why: the one that the environment variable
 * POWER_ATTENTION_DEVICE names, else `webgpu` where there is a GPU, else `wasm`. An adapter made of software (llvmpipe,
 * SwiftShader) is no GPU: wasm is faster than it. Found out once.
 */
export function defaultDevice(): Promise<{ kind: DeviceKind; reason: string }> {
  choice ??= choose();
  return choice;
}

async function choose(): Promise<{ kind: DeviceKind; reason: string }> {
  const named = typeof process === "undefined" ? undefined : process.env?.POWER_ATTENTION_DEVICE;
  if (named) return { kind: checkKind(named, "POWER_ATTENTION_DEVICE"), reason: "named by POWER_ATTENTION_DEVICE" };
  if (!mayHaveGpu()) return { kind: "wasm", reason: "this machine has no GPU" };
  const adapter = await findAdapter();
  if (!adapter) return { kind: "wasm", reason: "no adapter of a GPU was found" };
  const name = describeAdapter(adapter.info);
  if (isSoftware(adapter.info)) return { kind: "wasm", reason: `${name} is a GPU made of software, slower than wasm` };
  return { kind: "webgpu", reason: `${name} is a GPU` };
}

function checkKind(kind: string, what: string): DeviceKind {
  if (KINDS.includes(kind as DeviceKind)) return kind as DeviceKind;
  throw new RangeError(`getDevice: ${what} must be "oracle", "wasm" or "webgpu", got ${JSON.stringify(kind)}`);
}

/**
 * The device to make tensors on. Without a kind: `webgpu` where there is a GPU, else `wasm`; a GPU made of software
 * counts as none, and the environment variable POWER_ATTENTION_DEVICE names another default. An option that only one
 * kind has asks for that kind: `threads` for wasm; `device`, `powerPreference`, `portable`, `boundsChecks` and `tiles`
 * for webgpu. Called without options it gives the same device each time, a new one where a GPU was lost; with options it
 * makes a new one. `device.description` says what runs.
 *
 * @param kind `"wasm"` (CPU, WebAssembly with threads), `"webgpu"` (GPU) or `"oracle"` (float64, slow, for tests and doubt)
 * @param options threads and memory for wasm; `device` (a GPUDevice to use), `powerPreference`, `boundsChecks` and `tiles`
 *   for webgpu; `check` stops at the first operation that produces a NaN or is given a value out of range
 * @throws Error where the kind is not available here; there is no fallback to another kind
 */
export async function getDevice(kind?: DeviceKind, options?: DeviceOptions): Promise<Device> {
  kind ??= askedFor(options) ?? (await defaultDevice()).kind;
  if (options !== undefined) return create(kind, options);
  const known = made.get(kind);
  if (known && !(await isLost(known))) return known;
  // Another caller may have replaced a lost device meanwhile.
  if (made.get(kind) === known) {
    const fresh = create(kind, {});
    made.set(kind, fresh);
    fresh.catch(() => made.delete(kind));
  }
  return made.get(kind)!;
}

function askedFor(options: DeviceOptions = {}): DeviceKind | undefined {
  if (OF_WEBGPU.some((name) => options[name] !== undefined)) return "webgpu";
  return options.threads === undefined ? undefined : "wasm";
}

async function isLost(device: Promise<Device>): Promise<boolean> {
  const made = await device;
  return made instanceof WebGpuDevice && made.lost !== undefined;
}

async function create(kind: DeviceKind, options: DeviceOptions): Promise<Device> {
  switch (checkKind(kind, "kind")) {
    case "oracle":
      return new OracleDevice(options.check);
    case "wasm":
      return WasmDevice.create(options);
    case "webgpu":
      return WebGpuDevice.create(options);
  }
}
