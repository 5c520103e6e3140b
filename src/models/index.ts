export {
  checkGPTConfig,
  GPT,
  GPT_DEFAULTS,
  GPT_SIZES,
  type GPTCache,
  type GPTConfig,
  type GPTOptions,
  type GPTSize,
  gptConfig,
} from "./gpt.js";
export { type GPTFile, gptFromBytes, loadGPT, saveGPT } from "./gpt-files.js";
