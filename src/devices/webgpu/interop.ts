import { DTYPE_BYTES, type DType } from "../../tensor/dtype.js";
import { checkShape, rowMajor, type Shape, sizeOf } from "../../tensor/shape.js";
import { Tensor } from "../../tensor/tensor.js";
import type { Device } from "../device.js";
import { WebGpuDevice, WebGpuStorage } from "./device.js";

/**
 * A tensor over a GPUBuffer made elsewhere, without a copy. The buffer stays the caller's: it must outlive the tensor,
 * and must not change while work on it is queued.
 *
 * @param buffer with usage STORAGE, COPY_SRC and COPY_DST, of the GPUDevice behind `device`; row-major values
 * @param shape extents; the values must fit the buffer
 * @param options `device`: a webgpu device; `dtype`: of the values, default "f32"; `byteOffset`: of the first, a
 *   multiple of 4, default 0; `requiresGrad`: default false
 * @throws TypeError for another kind of device, RangeError where the buffer is too small
 */
export function fromGPUBuffer(
  buffer: GPUBuffer,
  shape: Shape,
  options: { device: Device; dtype?: DType; byteOffset?: number; requiresGrad?: boolean },
): Tensor {
  const { device, dtype = "f32", byteOffset = 0, requiresGrad = false } = options;
  if (!(device instanceof WebGpuDevice)) {
    throw new TypeError(
      `fromGPUBuffer: device must be a webgpu device, got ${device?.kind}; pass await getDevice("webgpu", { device })`,
    );
  }
  checkShape("fromGPUBuffer", shape);
  const length = sizeOf(shape);
  const needed = byteOffset + length * DTYPE_BYTES[dtype];
  if (!Number.isInteger(byteOffset) || byteOffset < 0 || byteOffset % 4 !== 0) {
    throw new RangeError(`fromGPUBuffer: byteOffset must be a multiple of 4, got ${byteOffset}; copy the values first`);
  }
  if (needed > buffer.size) {
    throw new RangeError(
      `fromGPUBuffer: shape [${shape.join(", ")}] of ${dtype} needs ${needed} bytes, got a buffer of ${buffer.size}; ` +
        "pass the buffer's own shape and dtype",
    );
  }
  const storage = new WebGpuStorage(device, dtype, length, buffer, false, byteOffset);
  return new Tensor(storage, shape, rowMajor(shape), 0, { requiresGrad });
}

/**
 * Where a webgpu tensor's values are: its buffer, the first value's place in it and their extent in bytes, row-major.
 * All work that writes them has been submitted, so what the caller submits next to the same queue sees them. The
 * buffer goes back to the pool when the tensor and its views are disposed: copy what must live longer.
 * @throws TypeError for a tensor of another device, RangeError for one that is not contiguous
 */
export function gpuBuffer(tensor: Tensor): { buffer: GPUBuffer; byteOffset: number; byteLength: number } {
  const { storage, device } = tensor;
  if (!(storage instanceof WebGpuStorage) || !(device instanceof WebGpuDevice)) {
    throw new TypeError(`gpuBuffer: a tensor of a webgpu device is needed, got ${tensor}; use await x.copyTo(device)`);
  }
  if (!tensor.isContiguous) {
    throw new RangeError(`gpuBuffer: a contiguous tensor is needed, got ${tensor}; call contiguous() first`);
  }
  device.flush();
  const byteOffset = storage.byteOffset + tensor.offset * DTYPE_BYTES[tensor.dtype];
  return { buffer: storage.buffer, byteOffset, byteLength: tensor.byteLength };
}
