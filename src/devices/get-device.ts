import type { Device, DeviceKind } from "./device.js";
import { OracleDevice } from "./oracle.js";
import { WasmDevice, type WasmOptions } from "./wasm/device.js";

export type DeviceOptions = WasmOptions;

const made = new Map<DeviceKind, Promise<Device>>();

/**
 * The device to make tensors on. Without a kind: the fastest there is (today `wasm`). Called without options it
 * gives the same device each time; with options it makes a new one.
 *
 * @param kind `"wasm"` (CPU, WebAssembly with threads) or `"oracle"` (float64, slow, for tests and doubt)
 * @param options threads and memory for wasm; `check` stops at the first operation that produces a NaN
 * @throws Error where the kind is not available here; there is no fallback to another kind
 */
export async function getDevice(kind: DeviceKind = "wasm", options?: DeviceOptions): Promise<Device> {
  if (options !== undefined) return create(kind, options);
  let device = made.get(kind);
  if (!device) {
    device = create(kind, {});
    made.set(kind, device);
    device.catch(() => made.delete(kind));
  }
  return device;
}

async function create(kind: DeviceKind, options: DeviceOptions): Promise<Device> {
  switch (kind) {
    case "oracle":
      return new OracleDevice(options.check);
    case "wasm":
      return WasmDevice.create(options);
    case "webgpu":
      throw new Error('getDevice: "webgpu" is not available in this version; use "wasm"');
    default:
      throw new RangeError(`getDevice: kind must be "oracle", "wasm" or "webgpu", got ${JSON.stringify(kind)}`);
  }
}
