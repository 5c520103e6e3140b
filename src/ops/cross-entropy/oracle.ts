import { oracleOutput, valuesOf } from "../../devices/oracle.js";
import { type CrossEntropyRows, checkTarget, type LogitsLayout } from "./contract.js";

/** Small blocks of plain f32: they stay in cache. Also on wasm. */
export const logitsInCache: LogitsLayout = {
  bytes: () => 8 * 2 ** 20,
  asX: false,
  columns: (classes) => classes,
};

export const crossEntropyRows: CrossEntropyRows = (logits, targets, classes, scale) => {
  const [rows, columns] = logits.shape;
  const [values, wanted] = [valuesOf(logits), valuesOf(targets)]; // contiguous: the memory itself
  const losses = oracleOutput({ device: logits.device, dtype: "f32" }, [rows]);
  for (let r = 0; r < rows; r++) {
    const row = values.subarray(r * columns, r * columns + classes);
    const target = wanted[r];
    checkTarget(target, r, classes);
    const top = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    const sum = row.reduce((total, x) => total + Math.exp(x - top), 0);
    if (target >= 0) losses.values[r] = Math.log(sum) + top - row[target];
    if (scale === undefined) continue;
    values.fill(0, r * columns + classes, (r + 1) * columns);
    const factor = target >= 0 ? scale : 0;
    for (let c = 0; c < classes; c++) row[c] = (Math.exp(row[c] - top) / sum - (c === target ? 1 : 0)) * factor;
  }
  return losses.tensor;
};
