import type { Shape } from "./arithmetic.js";
import type { Question } from "./context.js";
import { powerShare } from "./share-of-peak.js";

/** The case most figures are about. Its chunk size is the library's choice for this shape, written out to count by. */
export function mainShape(tokens: number): Shape {
  return { batch: 1, tokens, queryHeads: 8, heads: 8, headDim: 64, valueDim: 64, degree: 2, chunkSize: 256 };
}

export const forward: Question = {
  name: "forward",
  question: "How near the multiply-add peak is the whole forward pass? (T=16,384, 8 heads, d=64, p=2, gated, f32)",
  target: "65 % of the peak; two threads 1.8 times one",
  run: (context) => powerShare(context, mainShape(context.quick ? 2048 : 16384), false, { share: 65, threads: 1.8 }),
};
