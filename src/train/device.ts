import type { Device, DeviceKind } from "../devices/device.js";
import { getDevice } from "../devices/get-device.js";

/**
 * The device that options name: "auto" is what `getDevice` takes by itself, and a number of threads, which only wasm
 * has, asks for wasm there. A device made for a number of threads is the caller's to dispose, others are everybody's.
 */
export function deviceFor({ device, threads }: { device: string; threads: number }): Promise<Device> {
  return getDevice(device === "auto" ? undefined : (device as DeviceKind), threads > 0 ? { threads } : undefined);
}
