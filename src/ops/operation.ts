import type { Device, DeviceKind } from "../devices/device.js";
import { tensorsIn } from "../tensor/scope.js";
import { isTensor } from "../tensor/tensor.js";

/** One body for each kind of device; all compute the same contract. */
export type Kernels<A extends unknown[], R> = { oracle: (...args: A) => R } & {
  wasm?: (...args: A) => R;
  webgpu?: (...args: A) => R;
};

/**
 * Ties an operation's kernels together. The result is called with the device first; a device without a body is an
 * error, never a detour to another device. On a device in check mode, a NaN in an output names the operation.
 */
export function operation<A extends unknown[], R>(name: string, kernels: Kernels<A, R>) {
  return (device: Device, ...args: A): R => {
    const kernel = (kernels as Partial<Record<DeviceKind, (...args: A) => R>>)[device.kind];
    if (!kernel) throw new Error(`${name}: not available on device ${device.kind}; copy the inputs to another device`);
    const result = kernel(...args);
    if (device.check) for (const tensor of tensorsIn(result, isTensor)) device.assertNumbers(name, tensor.storage);
    return result;
  };
}
