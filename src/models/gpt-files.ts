import { readFileSync } from "node:fs";
import { join } from "node:path";
import { loadTokenizer, type Tokenizer, type TokenizerSpec } from "../data/tokenizer.js";
import { writeFileWhole } from "../data/whole-file.js";
import { GPT, type GPTConfig, type GPTOptions } from "./gpt.js";
import { loadTensors, saveTensors } from "./weights.js";

/** config.json of a saved model. */
export interface GPTFile {
  model: "gpt";
  version: 1;
  config: GPTConfig;
  tokenizer: TokenizerSpec;
}

/** Writes config.json and model.safetensors into an existing folder. */
export async function saveGPT(folder: string, model: GPT, tokenizer: TokenizerSpec): Promise<void> {
  const file: GPTFile = { model: "gpt", version: 1, config: model.config, tokenizer };
  writeFileWhole(join(folder, "config.json"), `${JSON.stringify(file, undefined, 2)}\n`);
  await saveTensors(join(folder, "model.safetensors"), model.parameters());
}

/**
 * A model and its tokenizer from a folder with config.json and model.safetensors.
 * @throws Error where a file is missing or damaged, or the two disagree
 */
export async function loadGPT(folder: string, options: GPTOptions): Promise<{ model: GPT; tokenizer: Tokenizer }> {
  const path = join(folder, "config.json");
  let file: GPTFile;
  try {
    file = JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    throw new Error(`loadGPT: cannot read ${path} (${error instanceof Error ? error.message : error})`);
  }
  if (file?.model !== "gpt" || file.version !== 1 || typeof file.config !== "object") {
    throw new Error(`loadGPT: ${path} must describe a model of kind "gpt", version 1; it is of something else`);
  }
  const tokenizer = await loadTokenizer(file.tokenizer);
  if (tokenizer.vocabSize !== file.config.vocabSize) {
    throw new Error(
      `loadGPT: ${path} has vocabSize ${file.config.vocabSize} and a tokenizer of ${tokenizer.vocabSize}; it was changed by hand`,
    );
  }
  const model = new GPT(file.config, options);
  try {
    loadTensors(join(folder, "model.safetensors"), model.parameters());
  } catch (error) {
    model.dispose();
    throw error;
  }
  return { model: model.eval(), tokenizer };
}
