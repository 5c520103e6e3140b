export { bigramLoss } from "./bigram.js";
export { type EvaluateOptions, type Evaluation, evaluate } from "./evaluate.js";
