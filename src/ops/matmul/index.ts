import type { DType } from "../../tensor/dtype.js";
import { broadcastShape } from "../../tensor/shape.js";
import { record } from "../../tensor/tape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { floatOnly, operation, sameKind } from "../operation.js";
import { sumTo } from "../reduce/index.js";
import * as oracle from "./oracle.js";
import * as wasm from "./wasm.js";
import * as webgpu from "./webgpu.js";

const run = operation("matmul", { oracle: oracle.matmul, wasm: wasm.matmul, webgpu: webgpu.matmul });

/**
 * Matrix product over the last two axes: out[…, i, j] = Σ_l a[…, i, l] · b[…, l, j]. Leading axes broadcast.
 * Transposed or sliced views are read where they are, without a copy.
 * @param a `[…, m, k]`
 * @param b `[…, k, n]`, of the dtype of a
 * @param options dtype: of the result, whose sums are f32 whatever it is; default a's
 * @returns `[…, m, n]`
 * @throws RangeError where shapes don't fit, TypeError where dtypes or devices differ
 */
export function matmul(a: Tensor, b: Tensor, { dtype = a.dtype }: { dtype?: DType } = {}): Tensor {
  const shapes = `[${a.shape.join(", ")}] and [${b.shape.join(", ")}]`;
  if (a.shape.length < 2 || b.shape.length < 2) {
    throw new RangeError(`matmul: both tensors need two axes or more, got ${shapes}; reshape a vector to a matrix`);
  }
  const k = a.shape[a.shape.length - 1];
  if (b.shape[b.shape.length - 2] !== k) {
    throw new RangeError(`matmul: columns of the first must be rows of the second, got ${shapes}; transpose() one`);
  }
  sameKind("matmul", a, b);
  floatOnly("matmul", a);
  // One matrix for all: the leading axes of the first are just more rows.
  if (b.shape.length === 2 && a.shape.length > 2) {
    const rows = a.shape.slice(0, -1);
    const flat = a.reshape([rows.reduce((x, y) => x * y, 1), k]);
    const product = matmul(flat, b, { dtype });
    const out = product.reshape([...rows, b.shape[1]]);
    flat.dispose();
    product.dispose();
    return out;
  }
  const batch = broadcastShape("matmul", a.shape.slice(0, -2), b.shape.slice(0, -2));
  const out = run(a.device, a, b, batch, dtype);
  const wanted = [a.requiresGrad, b.requiresGrad];
  const [shapeA, shapeB] = [a.shape, b.shape];
  // out = a·b, so da = g·bᵀ and db = aᵀ·g.
  record("matmul", [a, b], [out], [a, b], ([upstream], [x, y]) => {
    const g = upstream?.to(x.dtype);
    return [
      g && wanted[0] ? sumTo(matmul(g, y.transpose()), shapeA) : undefined,
      g && wanted[1] ? sumTo(matmul(x.transpose(), g), shapeB) : undefined,
    ];
  });
  return out;
}
