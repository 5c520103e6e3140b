export {
  copySession,
  type GenerateOptions,
  type GenerateStats,
  generate,
  generateText,
  readPrompt,
  type Session,
} from "./generate.js";
export { SAMPLE_DEFAULTS, type SampleOptions, sampleToken } from "./sample.js";
export { loadSession, saveSession, sessionFromBytes, sessionToBytes } from "./session-file.js";
