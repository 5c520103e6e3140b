import type { Question } from "./context.js";
import { mainShape } from "./forward.js";
import { powerShare } from "./share-of-peak.js";

export const p4: Question = {
  name: "p4",
  question: "Forward and backward at degree 4 (d=16, 8 heads)",
  target: "45 % of the peak",
  run: (context) => {
    const shape = { ...mainShape(context.quick ? 2048 : 16384), headDim: 16, valueDim: 16, degree: 4 };
    return powerShare(context, shape, true, { share: 45 });
  },
};
