import type { TokenFile } from "../data/token-file.js";
import { GPT } from "../models/gpt.js";
import { AdamW } from "../nn/adamw.js";
import { Scope } from "../tensor/scope.js";
import { modelConfig, type TrainConfig, trainConfig } from "./config.js";
import { deviceFor } from "./device.js";

/** Seconds that an update takes on this machine, the median of a few after the kernels are warm. */
export async function measureStep(given: Partial<TrainConfig>, file: TokenFile): Promise<number> {
  const config = trainConfig(given);
  const { batchSize, contextLength, threads } = config;
  const device = await deviceFor(config);
  const model = new GPT(modelConfig(config, file.info.vocabSize), { device });
  const optimizer = new AdamW(model.parameters(), config);
  const times: number[] = [];
  for (let step = 0; step < 6; step++) {
    using _ = new Scope();
    const start = performance.now();
    const ids = model.ids(file.read(0, batchSize * contextLength), [batchSize, contextLength]);
    const loss = model.loss(ids, ids);
    loss.backward();
    optimizer.update(0, optimizer.squaredNorm());
    await loss.item();
    model.clearGrad();
    times.push((performance.now() - start) / 1000);
  }
  optimizer.dispose();
  model.dispose();
  if (threads > 0) device.dispose();
  return times.slice(2).sort((a, b) => a - b)[2];
}
