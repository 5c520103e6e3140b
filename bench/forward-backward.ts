import type { Question } from "./context.js";
import { mainShape } from "./forward.js";
import { powerShare } from "./share-of-peak.js";

export const forwardBackward: Question = {
  name: "forward-backward",
  question: "The same with the backward pass (gradients of q, k, v and logG)",
  target: "55 % of the peak; two threads 1.7 times one",
  run: (context) => powerShare(context, mainShape(context.quick ? 2048 : 16384), true, { share: 55, threads: 1.7 }),
};
