import type { Device } from "../../devices/device.js";
import type { DType } from "../../tensor/dtype.js";
import { axisOf, checkShape, type Shape } from "../../tensor/shape.js";
import { record } from "../../tensor/tape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { operation, sameKind } from "../operation.js";
import * as oracle from "./oracle.js";
import * as wasm from "./wasm.js";
import * as webgpu from "./webgpu.js";

const kernels = {
  contiguous: operation("contiguous", { oracle: oracle.contiguous, wasm: wasm.contiguous, webgpu: webgpu.contiguous }),
  full: operation("full", { oracle: oracle.full, wasm: wasm.full, webgpu: webgpu.full }),
  pad: operation("pad", { oracle: oracle.pad, wasm: wasm.pad, webgpu: webgpu.pad }),
  concat: operation("concat", { oracle: oracle.concat, wasm: wasm.concat, webgpu: webgpu.concat }),
  cast: operation("cast", { oracle: oracle.cast, wasm: wasm.cast, webgpu: webgpu.cast }),
};

/** A copy with row-major strides. */
export function contiguous(x: Tensor): Tensor {
  const out = kernels.contiguous(x.device, x);
  record("contiguous", [x], [out], [], ([g]) => [g]);
  return out;
}

/** A tensor with one value everywhere. */
export function full(shape: Shape, value: number, like: { device: Device; dtype: DType }): Tensor {
  checkShape("full", shape);
  return kernels.full(like.device, shape, value, { device: like.device, dtype: like.dtype });
}

/** Zeros before and after the elements of one axis. */
export function pad(x: Tensor, axis: number, before: number, after: number): Tensor {
  const at = axisOf("pad", axis, x.shape.length);
  if (!Number.isInteger(before) || !Number.isInteger(after) || before < 0 || after < 0) {
    throw new RangeError(`pad: the numbers of zeros must be integers of 0 or more, got ${before} and ${after}`);
  }
  const out = kernels.pad(x.device, x, at, before, after);
  const extent = x.shape[at];
  record("pad", [x], [out], [], ([g]) => [g?.slice(at, before, before + extent)]);
  return out;
}

/**
 * Tensors one after the other along an axis; all other extents, dtype and device agree.
 * @throws RangeError, TypeError where they don't, or the list is empty
 */
export function concat(list: readonly Tensor[], axis: number): Tensor {
  if (list.length === 0) throw new RangeError("concat: at least one tensor is needed, got an empty list");
  const [first] = list;
  const at = axisOf("concat", axis, first.shape.length);
  sameKind("concat", ...list);
  for (const x of list) {
    if (x.shape.length !== first.shape.length || x.shape.some((n, k) => k !== at && n !== first.shape[k])) {
      throw new RangeError(
        `concat: shapes must agree except along axis ${at}, got [${first.shape.join(", ")}] and [${x.shape.join(", ")}]`,
      );
    }
  }
  const out = kernels.concat(first.device, list, at);
  const extents = list.map((x) => x.shape[at]);
  record("concat", list, [out], [], ([g]) => (g ? g.split(extents, at) : []));
  return out;
}

/**
 * The values in another dtype: float formats round to nearest even, i32 truncates. Differentiable between float
 * formats.
 */
export function cast(x: Tensor, dtype: DType): Tensor {
  const out = kernels.cast(x.device, x, dtype);
  const back = x.dtype;
  if (dtype !== "i32" && back !== "i32") record("cast", [x], [out], [], ([g]) => [g && cast(g, back)]);
  return out;
}
