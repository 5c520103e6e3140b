import { valuesOf } from "../../devices/oracle.js";
import type { AdamWUpdate } from "./contract.js";

export const update: AdamWUpdate = (plan, tensors) => {
  const { learningRate, beta1, beta2, epsilon, weightDecay, step, maxNorm, unscale = 1 } = plan;
  const { parameter, gradient, mean, square, squaredNorm } = tensors;
  const [p, g, m, v] = [parameter, gradient, mean, square].map(valuesOf); // contiguous: the memory itself
  const copy = tensors.rounded && valuesOf(tensors.rounded);
  const norm = unscale * Math.sqrt(valuesOf(squaredNorm)[0]);
  if (!Number.isFinite(norm)) return;
  const shrink = unscale * (norm > maxNorm ? maxNorm / norm : 1);
  for (let k = 0; k < p.length; k++) {
    const d = g[k] * shrink;
    m[k] = beta1 * m[k] + (1 - beta1) * d;
    v[k] = beta2 * v[k] + (1 - beta2) * d * d;
    const move = m[k] / (1 - beta1 ** step) / (Math.sqrt(v[k] / (1 - beta2 ** step)) + epsilon);
    p[k] -= learningRate * (move + weightDecay * p[k]);
    if (copy) copy[k] = p[k];
  }
};
