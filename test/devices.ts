import { describe } from "vitest";
import type { DeviceKind } from "../src/devices/device.js";
import { findAdapter } from "../src/devices/webgpu/adapter.js";

export const hasAdapter = (await findAdapter()) !== undefined;

/** The GPU, or a driver that plays one, where there is either; test/gpu.test.ts reports what is skipped without. */
const gpu: DeviceKind[] = hasAdapter ? ["webgpu"] : [];

type Operation = "powerFull" | "lowLevel" | "softmax" | "featureMap" | "step";

/** Which devices have the kernels of each operation: the suites run over these lists. */
export const READY: Record<Operation, readonly DeviceKind[]> = {
  powerFull: ["oracle", "wasm", ...gpu],
  lowLevel: ["oracle", "wasm", ...gpu],
  softmax: ["oracle", "wasm", ...gpu],
  featureMap: ["oracle", "wasm", ...gpu],
  step: ["oracle", "wasm", ...gpu],
};

/** Those besides the oracle, which the oracle checks. */
export function others(kinds: readonly DeviceKind[]): DeviceKind[] {
  return kinds.filter((kind) => kind !== "oracle");
}

/** Suites of the webgpu device alone: skipped, name by name, where there is no adapter. */
export function describeOnGpu(name: string, body: () => void): void {
  describe.skipIf(!hasAdapter)(name, body);
}
