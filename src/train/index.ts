export { AdamW, type AdamWOptions } from "../nn/adamw.js";
export { Checkpoints, findCheckpoint, hasCheckpoint, loadTraining, type TrainState } from "./checkpoint.js";
export { modelConfig, TRAIN_OPTIONS, type TrainConfig, trainConfig } from "./config.js";
export { measureStep } from "./measure.js";
export { type EvalMetric, type Metric, readMetrics, type SampleMetric, type StepMetric } from "./metrics.js";
export { type ReportInput, reportHtml } from "./report.js";
export { learningRateAt } from "./schedule.js";
export { DivergedError, type TrainOptions, type TrainResult, type TrainStart, train } from "./train.js";
export { WindowOrder } from "./window-order.js";
