import { loadTokenizer, type Tokenizer, type TokenizerSpec } from "../data/tokenizer.js";
import { GPT, type GPTConfig, type GPTOptions } from "./gpt.js";
import { fillTensors } from "./weights.js";

/** config.json of a saved model. */
export interface GPTFile {
  model: "gpt";
  version: 1;
  config: GPTConfig;
  tokenizer: TokenizerSpec;
}

/** Writes config.json and model.safetensors into an existing folder. Node only. */
export async function saveGPT(folder: string, model: GPT, tokenizer: TokenizerSpec): Promise<void> {
  const [{ writeFileWhole }, { saveTensors }] = await Promise.all([
    import("../data/whole-file.js"),
    import("./weight-files.js"),
  ]);
  const file: GPTFile = { model: "gpt", version: 1, config: model.config, tokenizer };
  writeFileWhole(`${folder}/config.json`, `${JSON.stringify(file, undefined, 2)}\n`);
  await saveTensors(`${folder}/model.safetensors`, model.parameters());
}

/**
 * A model and its tokenizer from a folder with config.json and model.safetensors. Node only; elsewhere fetch the two
 * and use `gptFromBytes`.
 * @throws Error where a file is missing or damaged, or the two disagree
 */
export async function loadGPT(folder: string, options: GPTOptions): Promise<{ model: GPT; tokenizer: Tokenizer }> {
  const { readFileSync } = await import("node:fs");
  const read = (name: string): Uint8Array => {
    try {
      return readFileSync(`${folder}/${name}`);
    } catch (error) {
      throw new Error(`loadGPT: cannot read ${folder}/${name} (${error instanceof Error ? error.message : error})`);
    }
  };
  return gptFromBytes(read("config.json"), read("model.safetensors"), options, folder);
}

/**
 * A model and its tokenizer from the contents of config.json and model.safetensors.
 * @param folder names the files in errors
 * @throws Error where one is damaged, or the two disagree
 */
export async function gptFromBytes(
  config: Uint8Array,
  weights: Uint8Array,
  options: GPTOptions,
  folder = ".",
): Promise<{ model: GPT; tokenizer: Tokenizer }> {
  const path = `${folder}/config.json`;
  let file: GPTFile;
  try {
    file = JSON.parse(new TextDecoder().decode(config));
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
    fillTensors(weights, `${folder}/model.safetensors`, model.parameters());
  } catch (error) {
    model.dispose();
    throw error;
  }
  return { model: model.eval(), tokenizer };
}
