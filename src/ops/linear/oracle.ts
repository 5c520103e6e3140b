import { fromOracleValues, valuesOf } from "../../devices/oracle.js";
import { mapOne, mapTwo } from "../elementwise/oracle.js";
import type { LinearForward } from "./contract.js";

export const linearForward: LinearForward = (x, weight, { bias, activation, residual, dtype }) => {
  const [rows, inputs] = x.shape;
  const outputs = weight.shape[0];
  const [xs, w, b] = [valuesOf(x), valuesOf(weight), bias && valuesOf(bias)];
  const out = new Float64Array(rows * outputs);
  for (let r = 0; r < rows; r++) {
    for (let o = 0; o < outputs; o++) {
      let sum = b ? b[o] : 0;
      for (let i = 0; i < inputs; i++) sum += xs[r * inputs + i] * w[o * inputs + i];
      out[r * outputs + o] = sum;
    }
  }
  const result = fromOracleValues({ device: x.device, dtype }, [rows, outputs], out);
  const active = activation === "none" ? result : mapOne(activation, result);
  return residual ? mapTwo("add", active, residual) : active;
};
