import type { Device, DeviceKind } from "./device.js";
import { OracleDevice } from "./oracle.js";
import { WasmDevice, type WasmOptions } from "./wasm/device.js";
import { findAdapter } from "./webgpu/adapter.js";
import { WebGpuDevice, type WebGpuOptions } from "./webgpu/device.js";

export type DeviceOptions = WasmOptions & WebGpuOptions;

/** Whether a GPU, where there is one, is the default. */
const PREFER_WEBGPU = false;

const made = new Map<DeviceKind, Promise<Device>>();

/**
 * The device to make tensors on. Without a kind: the fastest there is (today `wasm`). Called without options it
 * gives the same device each time, a new one where a GPU was lost; with options it makes a new one.
 *
 * @param kind `"wasm"` (CPU, WebAssembly with threads), `"webgpu"` (GPU) or `"oracle"` (float64, slow, for tests and doubt)
 * @param options threads and memory for wasm; `device` (a GPUDevice to use) and `powerPreference` for webgpu; `check`
 *   stops at the first operation that produces a NaN
 * @throws Error where the kind is not available here; there is no fallback to another kind
 */
export async function getDevice(kind?: DeviceKind, options?: DeviceOptions): Promise<Device> {
  kind ??= PREFER_WEBGPU && (await findAdapter()) ? "webgpu" : "wasm";
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

async function isLost(device: Promise<Device>): Promise<boolean> {
  const made = await device;
  return made instanceof WebGpuDevice && made.lost !== undefined;
}

async function create(kind: DeviceKind, options: DeviceOptions): Promise<Device> {
  switch (kind) {
    case "oracle":
      return new OracleDevice(options.check);
    case "wasm":
      return WasmDevice.create(options);
    case "webgpu":
      return WebGpuDevice.create(options);
    default:
      throw new RangeError(`getDevice: kind must be "oracle", "wasm" or "webgpu", got ${JSON.stringify(kind)}`);
  }
}
