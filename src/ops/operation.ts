import type { Device, DeviceKind } from "../devices/device.js";
import type { DType } from "../tensor/dtype.js";
import { tensorsIn } from "../tensor/scope.js";
import { isTensor, type Tensor } from "../tensor/tensor.js";

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

/** Throws where tensors are not on one device and of one dtype. */
export function sameKind(caller: string, ...[first, ...others]: readonly Tensor[]): void {
  for (const other of others) {
    if (other.device !== first.device) {
      throw new TypeError(
        `${caller}: tensors must be on one device, got ${first.device.description} and ${other.device.description}; use copyTo()`,
      );
    }
    if (other.dtype !== first.dtype) {
      throw new TypeError(
        `${caller}: tensors must have one dtype, got ${first.dtype} and ${other.dtype}; convert one with to("${first.dtype}")`,
      );
    }
  }
}

/**
 * The dtype of a parameter's gradient: f32 for a leaf, whose gradients are sums over all tokens that half formats would
 * not hold; the tensor's own for one that was computed, since what computed it goes on in that.
 */
export function gradientDType(parameter: Tensor): DType {
  return parameter.node ? parameter.dtype : "f32";
}

/** Throws where a tensor holds integers. */
export function floatOnly(caller: string, x: Tensor): void {
  if (x.dtype === "i32") throw new TypeError(`${caller}: a float dtype is needed, got i32; convert with to("f32")`);
}
