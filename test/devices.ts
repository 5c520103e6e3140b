import { describe } from "vitest";
import type { DeviceKind } from "../src/devices/device.js";
import { findAdapter } from "../src/devices/webgpu/adapter.js";

export const hasAdapter = (await findAdapter()) !== undefined;

const gpu: DeviceKind[] = hasAdapter ? ["webgpu"] : [];

/** Which devices have the kernels of each operation: the suites run over these lists. */
export const READY: Record<"powerFull" | "lowLevel" | "softmax" | "featureMap" | "step", DeviceKind[]> = {
  powerFull: ["oracle", ...gpu],
  lowLevel: ["oracle", ...gpu],
  softmax: ["oracle", ...gpu],
  featureMap: ["oracle", ...gpu],
  step: ["oracle"],
};

/** Those besides the oracle, which the oracle checks. */
export function others(kinds: readonly DeviceKind[]): DeviceKind[] {
  return kinds.filter((kind) => kind !== "oracle");
}

/** Suites of the webgpu device alone: skipped, name by name, where there is neither a GPU nor a driver that plays one. */
export function describeOnGpu(name: string, body: () => void): void {
  describe.skipIf(!hasAdapter)(name, body);
}
