import type { Gradients, Problem } from "./peer.js";

/**
 * Degree-2 power attention ('sum' normalisation) or causal softmax attention by its definition, in float64, with its
 * gradients; q·k is scaled by 1/√d. It shares no code with the library, so that a benchmark never checks a peer
 * against the thing the peer is compared with.
 */
export function reference(kind: "power" | "softmax", problem: Problem): { output: Float64Array; gradients: Gradients } {
  const { tokens: T, heads: H, headDim: d, q, k, v, logG, upstream } = problem;
  const scale = 1 / Math.sqrt(d);
  const output = new Float64Array(q.length);
  const dQ = new Float64Array(q.length);
  const dK = new Float64Array(q.length);
  const dV = new Float64Array(q.length);
  const dLogG = new Float64Array(logG.length);
  const dot = (a: ArrayLike<number>, i: number, b: ArrayLike<number>, j: number) => {
    let sum = 0;
    for (let c = 0; c < d; c++) sum += a[i + c] * b[j + c];
    return sum;
  };
  for (let h = 0; h < H; h++) {
    const at = (t: number) => (t * H + h) * d;
    const G = new Float64Array(T);
    for (let t = 0; t < T; t++) G[t] = logG[t * H + h] + (t > 0 ? G[t - 1] : 0);
    const dG = new Float64Array(T);
    for (let i = 0; i < T; i++) {
      const s = Float64Array.from({ length: i + 1 }, (_, j) => scale * dot(q, at(i), k, at(j)));
      const top = kind === "softmax" ? Math.max(...s) : 0;
      const w = s.map((x, j) => (kind === "softmax" ? Math.exp(x - top) : x * x * Math.exp(G[i] - G[j])));
      const sum = w.reduce((a, b) => a + b, 0);
      for (let j = 0; j <= i; j++) {
        const weight = w[j] / sum;
        for (let c = 0; c < d; c++) {
          output[at(i) + c] += weight * v[at(j) + c];
          dV[at(j) + c] += weight * upstream[at(i) + c];
        }
      }
      const mean = dot(upstream, at(i), output, at(i));
      for (let j = 0; j <= i; j++) {
        // The derivative by log w: w/sum · (d(out)·v − d(out)·out).
        const dLogW = (w[j] / sum) * (dot(upstream, at(i), v, at(j)) - mean);
        let dS = dLogW;
        if (kind === "power") {
          dG[i] += dLogW;
          dG[j] -= dLogW;
          dS = (2 * dLogW) / s[j];
        }
        for (let c = 0; c < d; c++) {
          dQ[at(i) + c] += scale * dS * k[at(j) + c];
          dK[at(j) + c] += scale * dS * q[at(i) + c];
        }
      }
    }
    for (let t = T - 1, sum = 0; t >= 0; t--) {
      sum += dG[t];
      dLogG[t * H + h] = sum;
    }
  }
  return { output, gradients: { q: dQ, k: dK, v: dV, logG: dLogG } };
}
