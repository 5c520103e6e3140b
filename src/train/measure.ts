import type { TokenFile } from "../data/token-file.js";
import { GPT } from "../models/gpt.js";
import { AdamW } from "../nn/adamw.js";
import type { DType } from "../tensor/dtype.js";
import { modelConfig, type TrainConfig, trainConfig } from "./config.js";
import { deviceFor } from "./device.js";
import { trainStep } from "./step.js";

/** Seconds that an update takes on this machine, the median of a few after the kernels are warm. */
export async function measureStep(given: Partial<TrainConfig>, file: TokenFile): Promise<number> {
  const config = trainConfig(given);
  const { batchSize, contextLength, threads } = config;
  const dtype = config.dtype as DType;
  const device = await deviceFor(config);
  const model = new GPT(modelConfig(config, file.info.vocabSize), { device, dtype });
  const optimizer = new AdamW(model.parameters(), config);
  const times: number[] = [];
  for (let step = 0; step < 6; step++) {
    const start = performance.now();
    const inputs = Int32Array.from(file.read(0, batchSize * contextLength));
    const batch = { inputs, targets: inputs, shape: [batchSize, contextLength] };
    await trainStep(model, optimizer, [batch], { learningRate: 0, dtype });
    times.push((performance.now() - start) / 1000);
  }
  optimizer.dispose();
  model.dispose();
  if (threads > 0) device.dispose();
  return times.slice(2).sort((a, b) => a - b)[2];
}
