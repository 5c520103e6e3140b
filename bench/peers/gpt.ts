import { Generator, getDevice } from "../../src/index.js";
import { GPT, type GPTConfig, gptConfig } from "../../src/models/index.js";

/** A GPT with softmax attention and learned positions, which every framework can write with its own operations. */
export function peerConfig(contextLength: number): GPTConfig {
  const size = { nLayer: 4, nEmbd: 256, nHead: 4, headSize: 64, vocabSize: 256 };
  return gptConfig("tiny", { ...size, contextLength, attention: "softmax", positions: "learned" });
}

export const RATES = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1 };
export const LEARNING_RATE = 1e-3;

/** Some text: contextLength + 1 ids. */
export function peerText({ contextLength, vocabSize }: GPTConfig): Int32Array {
  const generator = new Generator(7);
  return Int32Array.from({ length: contextLength + 1 }, () => generator.integer(vocabSize));
}

export interface Weight {
  shape: number[];
  values: Float32Array;
}

/** Our model's initial weights by name; linear maps as [inputs, outputs], so that no framework has to transpose them. */
export async function peerWeights(config: GPTConfig): Promise<Map<string, Weight>> {
  const device = await getDevice("wasm", { threads: 1 });
  const model = new GPT(config, { device, generator: new Generator(1) });
  const weights = new Map<string, Weight>();
  for (const [name, tensor] of model.parameters()) {
    const turned = tensor.shape.length === 2 && name.startsWith("blocks.") ? tensor.transpose() : tensor;
    weights.set(name, { shape: [...turned.shape], values: Float32Array.from(await turned.data()) });
  }
  device.dispose();
  return weights;
}

/** One framework's training: `step` runs forward, backward and AdamW, and returns the loss before the update. */
export interface GPTPeer {
  readonly name: string;
  readonly threads: number;
  load(config: GPTConfig, weights: Map<string, Weight>, text: Int32Array): Promise<void>;
  step(): Promise<number>;
}
