/** What names a tokenizer in config files; `json` carries a Hugging Face tokenizer whole, so that files stand alone. */
export type TokenizerSpec = { kind: "bytes" } | { kind: "gpt2" } | { kind: "huggingface"; name: string; json: object };

/** Text to token ids and back. */
export interface Tokenizer {
  readonly spec: TokenizerSpec;
  /** Ids run from 0 to vocabSize − 1. */
  readonly vocabSize: number;
  /** The id put between documents. */
  readonly endOfText: number;
  encode(text: string): number[];
  /** Ids that end inside a character decode to U+FFFD there; see `TextStream`. */
  decode(ids: readonly number[]): string;
}

/** UTF-8 bytes as ids; byte 0, which text does not use, ends a document. */
const BYTES: Tokenizer = {
  spec: { kind: "bytes" },
  vocabSize: 256,
  endOfText: 0,
  encode: (text) => [...new TextEncoder().encode(text)],
  decode: (ids) => new TextDecoder().decode(Uint8Array.from(ids)),
};

async function gpt2(): Promise<Tokenizer> {
  const [bpe, { default: table }] = await Promise.all([
    import("gpt-tokenizer/encoding/r50k_base"),
    import("gpt-tokenizer/bpeRanks/r50k_base"),
  ]);
  // Text is text: "<|endoftext|>" in a document is not the end of it.
  const plain = { disallowedSpecial: new Set<string>() };
  const end = 50256;
  // The library's own decode keeps unfinished characters for its next call; the table's bytes do not.
  const encoder = new TextEncoder();
  const bytesOf = (id: number): ArrayLike<number> => {
    const piece = id === end ? "<|endoftext|>" : table[id];
    return typeof piece === "string" ? encoder.encode(piece) : (piece ?? []);
  };
  return {
    spec: { kind: "gpt2" },
    vocabSize: end + 1,
    endOfText: end,
    encode: (text) => bpe.encode(text, plain),
    decode: (ids) => new TextDecoder().decode(Uint8Array.from(ids.flatMap((id) => Array.from(bytesOf(id))))),
  };
}

const END_NAMES = ["<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[SEP]", "<|im_end|>"];

async function huggingface(spec: TokenizerSpec & { kind: "huggingface" }): Promise<Tokenizer> {
  const library = await import("@huggingface/tokenizers");
  let inner: InstanceType<typeof library.Tokenizer>;
  try {
    inner = new library.Tokenizer(spec.json, {});
  } catch (error) {
    throw new RangeError(`loadTokenizer: ${spec.name} is not a tokenizer.json that can be read: ${messageOf(error)}`);
  }
  const json = spec.json as {
    model?: { vocab?: Record<string, number> | [string, number][] };
    added_tokens?: { id: number; content: string }[];
  };
  const vocab = json.model?.vocab ?? {};
  const ids = Array.isArray(vocab) ? vocab.map((_, id) => id) : Object.values(vocab);
  const added = json.added_tokens ?? [];
  const last = [...ids, ...added.map(({ id }) => id)].reduce((a, b) => Math.max(a, b), -1);
  if (last < 0) throw new RangeError(`loadTokenizer: ${spec.name} has no vocabulary; give a tokenizer.json`);
  const end = END_NAMES.map((content) => added.find((token) => token.content === content)).find(Boolean);
  return {
    spec,
    vocabSize: last + 1,
    endOfText: end?.id ?? 0,
    encode: (text) => inner.encode(text, { add_special_tokens: false }).ids,
    decode: (tokens) =>
      tokens.length === 0
        ? ""
        : inner.decode([...tokens], { skip_special_tokens: false, clean_up_tokenization_spaces: false }),
  };
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/**
 * A tokenizer by name or from its description in a config file.
 * @param source `"bytes"`, `"gpt2"`, the path of a Hugging Face tokenizer.json, or a `TokenizerSpec`
 * @throws RangeError where the file is missing or not a tokenizer
 */
export async function loadTokenizer(source: string | TokenizerSpec): Promise<Tokenizer> {
  if (typeof source === "string") {
    if (source === "bytes" || source === "gpt2") return loadTokenizer({ kind: source });
    let json: object;
    try {
      const { readFileSync } = await import("node:fs"); // only a path needs Node
      json = JSON.parse(readFileSync(source, "utf8"));
    } catch (error) {
      throw new RangeError(
        `loadTokenizer: tokenizer must be "bytes", "gpt2" or the path of a tokenizer.json, got ${source} (${messageOf(error)})`,
      );
    }
    return huggingface({ kind: "huggingface", name: source.split(/[\\/]/).at(-1)!, json });
  }
  switch (source?.kind) {
    case "bytes":
      return BYTES;
    case "gpt2":
      return gpt2();
    case "huggingface":
      return huggingface(source);
    default:
      throw new RangeError(
        `loadTokenizer: unknown tokenizer ${JSON.stringify(source)}; use bytes, gpt2 or huggingface`,
      );
  }
}

/** Turns a stream of ids into text: characters come out whole, and spaces as in the full text. */
export class TextStream {
  #ids: number[] = [];
  #shown = "";

  constructor(private readonly tokenizer: Tokenizer) {}

  /** The text that this id completes; "" where a character is unfinished. */
  push(id: number): string {
    this.#ids.push(id);
    const text = this.tokenizer.decode(this.#ids);
    // A character of UTF-8 has at most 4 bytes; what is unfinished for longer is invalid and shown as it is.
    if (text.endsWith("\ufffd") && this.tokenizer.decode(this.#ids.slice(-4)) !== "\ufffd".repeat(4)) return "";
    const fresh = text.slice(this.#shown.length);
    // The ids of the last piece stay as context: some decoders treat the start of a text differently.
    this.#ids = this.#ids.slice(-8);
    this.#shown = this.tokenizer.decode(this.#ids);
    return fresh;
  }

  /** What is left, unfinished characters included. */
  end(): string {
    const rest = this.tokenizer.decode(this.#ids).slice(this.#shown.length);
    this.#ids = [];
    this.#shown = "";
    return rest;
  }
}
