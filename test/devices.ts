import { describe } from "vitest";
import type { Device, DeviceKind } from "../src/devices/device.js";
import { getDevice } from "../src/devices/get-device.js";
import { findAdapter } from "../src/devices/webgpu/adapter.js";

export const hasAdapter = (await findAdapter()) !== undefined;

/** Suites that need a GPU or a driver that plays one: skipped, name by name, where there is none. */
export const describeOnGpu = describe.skipIf(!hasAdapter);

/** Runs a suite once for each kind of device whose results are held against the oracle's. */
export function onEachDevice(suite: string, body: (device: () => Device) => void): void {
  for (const kind of ["wasm", "webgpu"] as DeviceKind[]) {
    describe.skipIf(kind === "webgpu" && !hasAdapter)(`${suite} on ${kind}`, async () => {
      const device = kind === "webgpu" && !hasAdapter ? undefined : await getDevice(kind);
      body(() => device!);
    });
  }
}
