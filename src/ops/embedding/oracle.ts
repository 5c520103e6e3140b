import { fromOracleValues, valuesOf } from "../../devices/oracle.js";
import { checkIds, type EmbeddingBackward, type EmbeddingForward } from "./contract.js";

export const embeddingForward: EmbeddingForward = (weight, ids, dtype) => {
  const [rows, width] = weight.shape;
  const [table, at] = [valuesOf(weight), valuesOf(ids)];
  checkIds(at, rows);
  const out = new Float64Array(at.length * width);
  for (const [k, id] of at.entries()) out.set(table.subarray(id * width, (id + 1) * width), k * width);
  return fromOracleValues({ device: weight.device, dtype }, [...ids.shape, width], out);
};

export const embeddingBackward: EmbeddingBackward = (weight, ids, dOutput, dtype) => {
  const width = weight.shape[1];
  const d = valuesOf(dOutput);
  const dW = new Float64Array(weight.size);
  for (const [k, id] of valuesOf(ids).entries()) {
    for (let c = 0; c < width; c++) dW[id * width + c] += d[k * width + c];
  }
  return fromOracleValues({ device: weight.device, dtype }, weight.shape, dW);
};
