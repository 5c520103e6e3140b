import { fromOracleValues, oracleOutput, valuesOf } from "../../devices/oracle.js";
import type { NormBackward, NormForward } from "./contract.js";

export const normForward: NormForward = ({ rows, width, epsilon, centered, dtype }, { x, weight, bias }) => {
  const [xs, w, b] = [valuesOf(x), valuesOf(weight), bias && valuesOf(bias)];
  const out = oracleOutput({ device: x.device, dtype }, x.shape);
  const statistics = oracleOutput({ device: x.device, dtype: "f32" }, [rows, 2]);
  for (let r = 0; r < rows; r++) {
    const row = xs.subarray(r * width, (r + 1) * width);
    const mean = centered ? row.reduce((sum, value) => sum + value, 0) / width : 0;
    const rstd = 1 / Math.sqrt(row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / width + epsilon);
    statistics.values.set([mean, rstd], 2 * r);
    for (let c = 0; c < width; c++) out.values[r * width + c] = (row[c] - mean) * rstd * w[c] + (b ? b[c] : 0);
  }
  return { output: out.tensor, statistics: statistics.tensor };
};

/**
 * With n = (x − mean)·rstd and g = dOut·weight:
 *     dx = rstd · (g − mean(g) − n · mean(g·n))     the mean(g) term only where rows are centered
 */
export const normBackward: NormBackward = (
  { rows, width, centered },
  { x, weight, bias },
  statistics,
  dOutput,
  more,
) => {
  const [xs, w, s, dOut] = [x, weight, statistics, dOutput].map(valuesOf);
  const dX = more ? Float64Array.from(valuesOf(more)) : new Float64Array(rows * width);
  const dW = new Float64Array(width);
  const dB = new Float64Array(width);
  for (let r = 0; r < rows; r++) {
    const [mean, rstd] = [s[2 * r], s[2 * r + 1]];
    let sumG = 0;
    let sumGN = 0;
    for (let c = 0; c < width; c++) {
      const n = (xs[r * width + c] - mean) * rstd;
      const d = dOut[r * width + c];
      sumG += d * w[c];
      sumGN += d * w[c] * n;
      dW[c] += d * n;
      dB[c] += d;
    }
    for (let c = 0; c < width; c++) {
      const n = (xs[r * width + c] - mean) * rstd;
      const g = dOut[r * width + c] * w[c];
      dX[r * width + c] += rstd * (g - (centered ? sumG / width : 0) - (n * sumGN) / width);
    }
  }
  return {
    x: fromOracleValues(x, x.shape, dX),
    weight: fromOracleValues(weight, weight.shape, dW),
    bias: bias && fromOracleValues(bias, bias.shape, dB),
  };
};
