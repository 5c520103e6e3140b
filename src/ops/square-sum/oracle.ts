import { fromOracleValues, valuesOf } from "../../devices/oracle.js";
import type { SquareSum } from "./contract.js";

export const squareSum: SquareSum = (tensors) => {
  let sum = 0;
  for (const tensor of tensors) for (const value of valuesOf(tensor)) sum += value * value;
  return fromOracleValues({ device: tensors[0].device, dtype: "f32" }, [], Float64Array.of(sum));
};
