import { fromOracleValues, valuesOf } from "../../devices/oracle.js";
import type { Rotate } from "./contract.js";

export const rotate: Rotate = ({ batch, time, heads, headDim, direction }, x, cos, sin) => {
  const [xs, cs, ss] = [x, cos, sin].map(valuesOf);
  const half = headDim / 2;
  const out = new Float64Array(x.size);
  for (let row = 0; row < batch * time * heads; row++) {
    const t = Math.floor(row / heads) % time;
    for (let i = 0; i < half; i++) {
      const [c, s] = [cs[t * half + i], direction * ss[t * half + i]];
      const [low, high] = [row * headDim + i, row * headDim + half + i];
      out[low] = xs[low] * c - xs[high] * s;
      out[high] = xs[high] * c + xs[low] * s;
    }
  }
  return fromOracleValues(x, x.shape, out);
};
