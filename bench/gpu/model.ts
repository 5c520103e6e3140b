import type { WebGpuDevice } from "../../src/devices/webgpu/device.js";
import { chooseChunkSize } from "../../src/index.js";
import { GPT, type GPTConfig, gptConfig } from "../../src/models/index.js";
import type { Context } from "../context.js";
import { stepOperations } from "../training-step.js";
import { FastGenerator } from "./inputs.js";

/** GPT-2's smallest with its vocabulary, in f16; at toy sizes two small layers. */
export function largeModel({ quick }: Context, device: WebGpuDevice, attention: "power" | "softmax"): GPT {
  const config = quick
    ? gptConfig("tiny", { vocabSize: 96, attention, chunkSize: 32 })
    : gptConfig("124M", { vocabSize: 50257, attention, contextLength: 1024 });
  return new GPT(config, { device, dtype: "f16", generator: new FastGenerator(1) });
}

/** Operations of a training step with the form of attention that the library chooses at that length. */
export function trainingOperations(
  config: GPTConfig,
  batch: number,
  time: number,
  device: Parameters<typeof chooseChunkSize>[1] = {},
): number {
  const { nHead, qheadRatio, headSize, degree, attention } = config;
  const dims = { time, queryHeads: nHead * qheadRatio, heads: nHead, headDim: headSize, valueDim: headSize, degree };
  const chosen = attention === "softmax" ? null : config.chunkSize || chooseChunkSize(dims, device);
  return stepOperations({ ...config, contextLength: time, chunkSize: chosen ?? time }, batch);
}
