import type { DeviceKind } from "../src/devices/device.js";

/** Which devices have the kernels of each operation: the suites run over these lists. */
export const READY = {
  powerFull: ["oracle", "wasm"],
  lowLevel: ["oracle", "wasm"],
  softmax: ["oracle", "wasm"],
  featureMap: ["oracle", "wasm"],
  step: ["oracle", "wasm"],
} as const satisfies Record<string, readonly DeviceKind[]>;

/** Those besides the oracle, which the oracle checks. */
export function others(kinds: readonly DeviceKind[]): DeviceKind[] {
  return kinds.filter((kind) => kind !== "oracle");
}
