import { TextStream, type Tokenizer } from "../data/tokenizer.js";
import type { GPT, GPTCache } from "../models/gpt.js";
import { Generator } from "../tensor/random.js";
import { Scope } from "../tensor/scope.js";
import { noGrad } from "../tensor/tape.js";
import { checkSampleOptions, SAMPLE_DEFAULTS, type SampleOptions, sampleToken } from "./sample.js";

export interface GenerateOptions extends Partial<SampleOptions> {
  /** Text to go on from; default: the start of a document. */
  prompt?: string;
  /** Tokens at most; default 200. */
  maxTokens?: number;
  /** Text that ends the output; it is not shown. */
  stop?: readonly string[];
  /** A seed, or a generator that goes on where it was. Default 0. */
  seed?: number | Generator;
  /** What the model has read so far; it reads on from there, so copy it to use it again. Default: nothing. */
  session?: Session;
  signal?: AbortSignal;
}

/** What a model has read: its caches, and the logits of the next token. */
export interface Session {
  caches: GPTCache;
  /** After the last token read. */
  logits: Float32Array;
}

/** Times of a generation, in seconds, and counts. */
export interface GenerateStats {
  promptTokens: number;
  tokens: number;
  /** From the call to the first token. */
  timeToFirstToken: number;
  /** Of the tokens after the first. */
  tokensPerSecond: number;
  /** Bytes that the model carries from token to token. */
  stateBytes: number;
  /** Why it ended. */
  end: "maxTokens" | "stop" | "endOfText" | "aborted";
}

/** Prompts are read in pieces of this many tokens, so that memory does not grow with them. */
const PIECE = 1024;

/** Feeds ids to a model. Softmax's cache takes only the first piece at once. */
async function read(model: GPT, caches: GPTCache, ids: readonly number[]): Promise<Float32Array> {
  const started = caches[0].tokens > 0;
  const piece = model.config.attention === "softmax" ? (started ? 1 : ids.length) : PIECE;
  let logits: Float32Array | undefined;
  for (let at = 0; at < ids.length; at += piece) {
    using _ = new Scope();
    const part = ids.slice(at, at + piece);
    const out = noGrad(() => model.forward(model.ids(part, [1, part.length]), { caches, last: true }));
    if (at + piece >= ids.length) logits = new Float32Array(await out.data());
  }
  if (!logits) throw new RangeError("generate: at least one token must be read first");
  return logits;
}

/** A session that goes on independently. */
export function copySession({ caches, logits }: Session): Session {
  return { caches: caches.map((cache) => cache.clone()), logits };
}

/** Reads a prompt: what comes before the text to generate. */
export async function readPrompt(
  model: GPT,
  tokenizer: Tokenizer,
  prompt: string,
  session?: Session,
): Promise<Session> {
  // A document starts after the end of the one before it.
  const ids = [...(session ? [] : [tokenizer.endOfText]), ...tokenizer.encode(prompt)];
  if (session && ids.length === 0) return session;
  const caches = session?.caches ?? model.caches(1);
  return { caches, logits: await read(model, caches, ids) };
}

/**
 * Writes text, piece by piece: `for await (const text of generate(model, tokenizer, { prompt }))`. With power attention
 * neither memory nor the time per token grows with the length. The value of the finished generator is `GenerateStats`.
 *
 * @throws RangeError where an option is out of range
 */
export async function* generate(
  model: GPT,
  tokenizer: Tokenizer,
  options: GenerateOptions = {},
): AsyncGenerator<string, GenerateStats> {
  const { prompt = "", maxTokens = 200, stop = [], seed = 0, signal } = options;
  const sampling = { ...SAMPLE_DEFAULTS, ...definedOnly(options) };
  checkSampleOptions(sampling);
  if (!Number.isInteger(maxTokens) || maxTokens < 0) {
    throw new RangeError(`generate: maxTokens must be an integer of 0 or more, got ${maxTokens}`);
  }
  const start = performance.now();
  const generator = seed instanceof Generator ? seed : new Generator(seed);
  const seen = new Set(tokenizer.encode(prompt));
  const session = await readPrompt(model, tokenizer, prompt, options.session);
  const { caches } = session;
  const promptTokens = caches[0].tokens;
  let { logits } = session;
  const stream = new TextStream(tokenizer);
  const gate = new StopGate(stop);
  let tokens = 0;
  let first = 0;
  let end: GenerateStats["end"] = "maxTokens";
  try {
    while (tokens < maxTokens) {
      if (signal?.aborted) {
        end = "aborted";
        break;
      }
      const id = sampleToken(logits, sampling, seen, generator);
      tokens++;
      if (tokens === 1) first = performance.now();
      if (id === tokenizer.endOfText) {
        end = "endOfText";
        break;
      }
      seen.add(id);
      const text = gate.push(stream.push(id));
      if (text !== "") yield text;
      if (gate.stopped) {
        end = "stop";
        break;
      }
      if (tokens < maxTokens) logits = await read(model, caches, [id]);
    }
    const rest = gate.stopped ? "" : gate.push(stream.end()) + gate.end();
    if (rest !== "") yield rest;
    const elapsed = (performance.now() - first) / 1000;
    return {
      promptTokens,
      tokens,
      timeToFirstToken: tokens > 0 ? (first - start) / 1000 : 0,
      tokensPerSecond: tokens > 1 ? (tokens - 1) / elapsed : 0,
      stateBytes: caches.reduce((sum, cache) => sum + cache.bytes, 0),
      end,
    };
  } finally {
    if (!options.session) for (const cache of caches) cache.dispose();
  }
}

/** Options that are given, so that `undefined` leaves the default. */
function definedOnly(options: GenerateOptions): Partial<SampleOptions> {
  const { temperature, topK, topP, repetitionPenalty } = options;
  const given = Object.entries({ temperature, topK, topP, repetitionPenalty }).filter(([, v]) => v !== undefined);
  return Object.fromEntries(given);
}

/** Lets text through up to the first stop string, holding back what may be the start of one. */
class StopGate {
  #held = "";
  stopped = false;

  constructor(private readonly stops: readonly string[]) {}

  push(text: string): string {
    if (this.stopped) return "";
    this.#held += text;
    const places = this.stops.map((s) => this.#held.indexOf(s)).filter((at, k) => at >= 0 && this.stops[k] !== "");
    if (places.length > 0) {
      this.stopped = true;
      return this.#held.slice(0, Math.min(...places));
    }
    let keep = 0;
    for (const stop of this.stops) {
      for (let n = Math.min(stop.length - 1, this.#held.length); n > keep; n--) {
        if (stop.startsWith(this.#held.slice(-n))) keep = n;
      }
    }
    const out = this.#held.slice(0, this.#held.length - keep);
    this.#held = this.#held.slice(this.#held.length - keep);
    return out;
  }

  end(): string {
    const rest = this.#held;
    this.#held = "";
    return rest;
  }
}

/** The whole text at once, and the times. */
export async function generateText(
  model: GPT,
  tokenizer: Tokenizer,
  options: GenerateOptions = {},
): Promise<{ text: string; stats: GenerateStats }> {
  const pieces = generate(model, tokenizer, options);
  let text = "";
  for (;;) {
    const next = await pieces.next();
    if (next.done) return { text, stats: next.value };
    text += next.value;
  }
}
