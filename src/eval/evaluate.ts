import type { TokenFile } from "../data/token-file.js";
import type { GPT } from "../models/gpt.js";
import { Scope } from "../tensor/scope.js";
import { noGrad } from "../tensor/tape.js";

export interface EvaluateOptions {
  /** Tokens of a window; default: what the model was trained on. Longer shows whether the model goes on past it. */
  contextLength?: number;
  batchSize?: number;
  /** Batches at most; default: the whole file. Fewer are spread evenly over it. */
  batches?: number;
}

export interface Evaluation {
  /** Nats per token. */
  loss: number;
  /** e^loss */
  perplexity: number;
  tokens: number;
  /** Mean loss of the tokens at each position of a window; perplexity falls along it where a model uses context. */
  byPosition: Float64Array;
}

/**
 * Loss of a model on a token file, in windows that do not overlap.
 * @throws RangeError where the file is shorter than one window, or of another vocabulary
 */
export async function evaluate(model: GPT, file: TokenFile, options: EvaluateOptions = {}): Promise<Evaluation> {
  const { contextLength = model.config.contextLength, batchSize = 8, batches = Number.POSITIVE_INFINITY } = options;
  for (const [name, value] of Object.entries({ contextLength, batchSize })) {
    if (!Number.isInteger(value) || value < 1) {
      throw new RangeError(`evaluate: ${name} must be a positive integer, got ${value}`);
    }
  }
  if (!(batches >= 1)) throw new RangeError(`evaluate: batches must be at least 1, got ${batches}`);
  checkVocabulary("evaluate", model, file);
  const available = Math.floor((file.length - 1) / contextLength);
  if (available < 1) {
    throw new RangeError(
      `evaluate: a context of ${contextLength} needs ${contextLength + 1} tokens, ${file.path} has ${file.length}; shorten the context or hold out more text`,
    );
  }
  const windows = Math.min(available, batches * batchSize);
  const byPosition = new Float64Array(contextLength);
  for (let first = 0; first < windows; first += batchSize) {
    const rows = Math.min(batchSize, windows - first);
    const inputs = new Int32Array(rows * contextLength);
    const targets = new Int32Array(rows * contextLength);
    for (let r = 0; r < rows; r++) {
      const start = Math.floor(((first + r) * available) / windows) * contextLength;
      const ids = file.read(start, contextLength + 1);
      inputs.set(ids.subarray(0, contextLength), r * contextLength);
      targets.set(ids.subarray(1), r * contextLength);
    }
    using _ = new Scope();
    const shape = [rows, contextLength];
    const losses = await noGrad(() => model.tokenLosses(model.ids(inputs, shape), model.ids(targets, shape))).data();
    for (let k = 0; k < losses.length; k++) byPosition[k % contextLength] += losses[k] / windows;
  }
  const loss = byPosition.reduce((a, b) => a + b, 0) / contextLength;
  return { loss, perplexity: Math.exp(loss), tokens: windows * contextLength, byPosition };
}

export function checkVocabulary(caller: string, model: GPT, file: TokenFile): void {
  if (file.info.vocabSize !== model.config.vocabSize) {
    throw new RangeError(
      `${caller}: ${file.path} was prepared with ${file.info.vocabSize} tokens, the model knows ${model.config.vocabSize}; prepare it with the model's tokenizer`,
    );
  }
}
