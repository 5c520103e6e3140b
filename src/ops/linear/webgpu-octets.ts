import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { Tensor } from "../../tensor/tensor.js";
import { pad } from "../copy/webgpu.js";

/**
 * x with zeros at the end of an axis, up to a multiple of eight: matrix units are fed sixteen bytes at a time. x itself
 * where that is no matter.
 */
export function wholeOctets(x: Tensor, axis: number): Tensor {
  const extra = (8 - (x.shape[axis] % 8)) % 8;
  if (extra === 0 || x.dtype === "f32" || !webgpuDevice(x).matrixUnits) return x;
  return pad(x, axis, 0, extra);
}
