import type { Question } from "../context.js";
import { timeLengths } from "./forward.js";

export const gpuForwardBackward: Question = {
  name: "gpu-forward-backward",
  question: "The same with the backward pass (gradients of q, k, v and logG)",
  target: "8.5 ms at T=65,536, aim 5; T=4,096 and 16,384 within 10 % of it",
  on: ["webgpu"],
  run: (context) => timeLengths(context, true, { atMost: 8.5, aim: 5 }),
};
