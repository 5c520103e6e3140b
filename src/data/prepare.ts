import { createHash } from "node:crypto";
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { documents } from "./documents.js";
import { infoPath, TokenWriter } from "./token-file.js";
import { loadTokenizer, type TokenizerSpec } from "./tokenizer.js";

export const PREPARE_DEFAULTS = {
  /** "bytes", "gpt2", or the path of a Hugging Face tokenizer.json. */
  tokenizer: "bytes" as string | TokenizerSpec,
  /** Share of the text that is held out for evaluation. */
  holdOut: 0.05,
  /** Characters of a block, the unit that the split deals out; no held-out context is longer than about this. */
  block: 16384,
  /** Extensions that count in folders. */
  extensions: [".txt", ".md"] as readonly string[],
  /** The field of a .jsonl line that holds the text. */
  field: "text",
  /** Stop after this many bytes of text (UTF-8). */
  maxBytes: Number.POSITIVE_INFINITY,
};

export interface PrepareOptions extends Partial<typeof PREPARE_DEFAULTS> {
  /** Files, folders, .jsonl files, or "-" for standard input. */
  sources: readonly string[];
  /** The folder that gets train.bin, val.bin and a .json beside each. */
  out: string;
  stdin?: Readable;
  onProgress?: (read: { documents: number; bytes: number }) => void;
}

export interface Prepared {
  documents: number;
  /** Documents left out because an earlier one had the same bytes. */
  duplicates: number;
  bytes: number;
  train: { path: string; tokens: number };
  val: { path: string; tokens: number };
}

/**
 * Text into token files, with a held-out split that depends on the text alone: it is cut at line ends into blocks, and
 * of every block / holdOut characters in a row the last block is held out; a text shorter than that gives its end. So
 * both parts hold every kind of text, and any size passes in constant memory. A document of at most two blocks that
 * repeats an earlier one is left out.
 *
 * @throws Error where a source is missing or there is too little text for both parts; no file is changed then
 */
export async function prepare(options: PrepareOptions): Promise<Prepared> {
  const { sources, out, holdOut, block, extensions, field, maxBytes, stdin, onProgress, ...rest } = {
    ...PREPARE_DEFAULTS,
    ...options,
  };
  if (sources.length === 0) throw new RangeError('prepare: a file, a folder or "-" is needed');
  if (!(holdOut > 0 && holdOut <= 0.5))
    throw new RangeError(`prepare: holdOut must be above 0 and at most 0.5, got ${holdOut}`);
  if (!(Number.isInteger(block) && block >= 64))
    throw new RangeError(`prepare: block must be an integer of 64 or more, got ${block}`);
  const tokenizer = await loadTokenizer(rest.tokenizer);
  mkdirSync(out, { recursive: true });
  const train = new TokenWriter(join(out, "train.bin"), tokenizer);
  const val = new TokenWriter(join(out, "val.bin"), tokenizer);
  const seen = new Set<string>();
  const done = { documents: 0, duplicates: 0, bytes: 0 };
  const write = (writer: TokenWriter, text: string, endOfDocument: boolean) => {
    const ids = tokenizer.encode(text);
    if (endOfDocument) ids.push(tokenizer.endOfText);
    writer.write(ids);
  };
  const period = block / holdOut;
  let position = 0;
  /** Blocks of the first period, until it is known that the text is longer. */
  let first: { text: string; end: boolean }[] | undefined = [];
  const deal = (text: string, end: boolean) => {
    if (first) first.push({ text, end });
    else write((position + text.length / 2) % period < period - block ? train : val, text, end);
    position += text.length;
    if (first && position >= period) {
      const begun = first;
      first = undefined;
      position = 0;
      for (const piece of begun) deal(piece.text, piece.end);
    }
  };
  const dealShort = (blocks: { text: string; end: boolean }[]) => {
    let room = Math.ceil(position * (1 - holdOut));
    for (const { text, end } of blocks) {
      const at = Math.min(text.length, cut(text, room));
      if (at > 0) write(train, text.slice(0, at), end && at === text.length);
      if (at < text.length) write(val, text.slice(at), end);
      room = at < text.length ? 0 : room - at;
    }
  };
  try {
    let text = "";
    let whole = true;
    for await (const piece of documents(sources, { extensions, field }, stdin)) {
      text += piece.text;
      if (piece.last && whole && isDuplicate(text, seen)) done.duplicates++;
      else {
        while (text.length > 2 * block || (piece.last && text.length > 0)) {
          const end = text.length <= 2 * block ? text.length : cut(text, block);
          const part = text.slice(0, end);
          text = text.slice(end);
          whole = false;
          deal(part, piece.last && text.length === 0);
          done.bytes += Buffer.byteLength(part);
        }
        if (piece.last) done.documents++;
      }
      if (piece.last) {
        text = "";
        whole = true;
      }
      onProgress?.(done);
      if (done.bytes >= maxBytes) break;
    }
    if (first) dealShort(first);
    if (train.tokens < 2 || val.tokens < 2) {
      throw new Error(
        `prepare: there is too little text: ${done.bytes} bytes gave ${train.tokens} training and ${val.tokens} held-out tokens; ` +
          "give more, name other extensions, or hold out a larger share",
      );
    }
    // A stale JSON must not describe a new file, should the power go between the renames.
    for (const writer of [train, val]) rmSync(infoPath(writer.path), { force: true });
    train.finish();
    val.finish();
  } finally {
    train.abandon();
    val.abandon();
  }
  const report = ({ path, tokens }: TokenWriter) => ({ path, tokens });
  return { ...done, train: report(train), val: report(val) };
}

/** Where to end a block of at most `room` characters: after a line where one ends in time, never inside a character. */
function cut(text: string, room: number): number {
  if (room >= text.length) return text.length;
  if (room <= 0) return 0;
  const line = text.lastIndexOf("\n", room - 1) + 1;
  if (line > room / 2) return line;
  const code = text.charCodeAt(room - 1);
  return code >= 0xd800 && code < 0xdc00 ? room - 1 : room;
}

function isDuplicate(text: string, seen: Set<string>): boolean {
  if (text.length === 0) return false;
  const hash = createHash("sha1").update(text).digest("base64");
  if (seen.has(hash)) return true;
  seen.add(hash);
  return false;
}
