import { oracleOutput, valuesOf } from "../../devices/oracle.js";
import type { DType } from "../../tensor/dtype.js";
import { sizeOf } from "../../tensor/shape.js";
import { noGrad } from "../../tensor/tape.js";
import { scope, type Tensor } from "../../tensor/tensor.js";

/** `batch` is the shape that the leading axes of both broadcast to. */
export function matmul(a: Tensor, b: Tensor, batch: readonly number[], dtype: DType): Tensor {
  const [m, k] = a.shape.slice(-2);
  const n = b.shape[b.shape.length - 1];
  const { tensor, values } = oracleOutput({ device: a.device, dtype }, [...batch, m, n]);
  const [x, y] = noGrad(() =>
    scope(() => [valuesOf(a.expand([...batch, m, k])), valuesOf(b.expand([...batch, k, n]))]),
  );
  for (let matrix = 0; matrix < sizeOf(batch); matrix++) {
    for (let i = 0; i < m; i++) {
      for (let l = 0; l < k; l++) {
        const factor = x[(matrix * m + i) * k + l];
        for (let j = 0; j < n; j++) values[(matrix * m + i) * n + j] += factor * y[(matrix * k + l) * n + j];
      }
    }
  }
  return tensor;
}
