import { oracleOutput, valuesOf } from "../../devices/oracle.js";
import { type CrossEntropyRows, checkTarget } from "./contract.js";

export const crossEntropyRows: CrossEntropyRows = (logits, targets, scale) => {
  const [rows, classes] = logits.shape;
  const [values, wanted] = [valuesOf(logits), valuesOf(targets)]; // contiguous: the memory itself
  const losses = oracleOutput({ device: logits.device, dtype: "f32" }, [rows]);
  for (let r = 0; r < rows; r++) {
    const row = values.subarray(r * classes, (r + 1) * classes);
    const target = wanted[r];
    checkTarget(target, r, classes);
    const top = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    const sum = row.reduce((total, x) => total + Math.exp(x - top), 0);
    if (target >= 0) losses.values[r] = Math.log(sum) + top - row[target];
    if (scale === undefined) continue;
    const factor = target >= 0 ? scale : 0;
    for (let c = 0; c < classes; c++) row[c] = (Math.exp(row[c] - top) / sum - (c === target ? 1 : 0)) * factor;
  }
  return losses.tensor;
};
