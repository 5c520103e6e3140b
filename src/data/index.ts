export { type DocumentOptions, documents, type TextPiece } from "./documents.js";
export { PREPARE_DEFAULTS, type Prepared, type PrepareOptions, prepare } from "./prepare.js";
export { infoPath, TokenFile, type TokenFileInfo, TokenWriter } from "./token-file.js";
export { loadTokenizer, TextStream, type Tokenizer, type TokenizerSpec } from "./tokenizer.js";
export { writeFileWhole } from "./whole-file.js";
