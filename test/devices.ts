import { describe } from "vitest";
import type { Device, DeviceKind } from "../src/devices/device.js";
import { getDevice } from "../src/devices/get-device.js";
import { findAdapter } from "../src/devices/webgpu/adapter.js";

/** Of a GPU, or of a driver that plays one. */
export const hasAdapter = (await findAdapter()) !== undefined;

/** Every kind runs every operation. */
export const DEVICES: readonly DeviceKind[] = ["oracle", "wasm", "webgpu"];
/** Those besides the oracle, which the oracle checks. */
export const OTHERS: readonly DeviceKind[] = ["wasm", "webgpu"];

export function isHere(kind: DeviceKind): boolean {
  return kind !== "webgpu" || hasAdapter;
}

/** The device for a suite; a stand-in while the tests of a skipped one are only listed. */
export function deviceOf(kind: DeviceKind): Promise<Device> {
  return getDevice(isHere(kind) ? kind : "oracle");
}

/** A suite for each kind of device, %s in its name; skipped, test by test, where a device is missing. */
export function describeOn<K extends DeviceKind>(
  kinds: readonly K[],
  name: string,
  body: (kind: K) => void | Promise<void>,
): void {
  for (const kind of kinds) describe.skipIf(!isHere(kind))(name.replace("%s", kind), () => body(kind));
}

/** Suites of the webgpu device alone. */
export function describeOnGpu(name: string, body: () => void | Promise<void>): void {
  describe.skipIf(!hasAdapter)(name, body);
}
