import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterAll, expect, test } from "vitest";
import { infoPath, loadTokenizer, prepare, TextStream, TokenFile, type Tokenizer } from "./index.js";

const folder = mkdtempSync(join(tmpdir(), "data-test-"));
afterAll(() => rmSync(folder, { recursive: true }));
const at = (...path: string[]) => join(folder, ...path);

/** A byte-level BPE with two merges, as a Hugging Face tokenizer.json. */
const TINY = {
  version: "1.0",
  added_tokens: [
    { id: 7, content: "</s>", special: true, single_word: false, lstrip: false, rstrip: false, normalized: false },
  ],
  normalizer: null,
  pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
  post_processor: null,
  decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
  model: {
    type: "BPE",
    dropout: null,
    unk_token: null,
    vocab: { a: 0, b: 1, Ġ: 2, Ã: 3, "©": 4, ab: 5, Ġab: 6 },
    merges: ["a b", "Ġ ab"],
  },
};

async function tokenizers(): Promise<Tokenizer[]> {
  writeFileSync(at("tokenizer.json"), JSON.stringify(TINY));
  return Promise.all(["bytes", "gpt2", at("tokenizer.json")].map(loadTokenizer));
}

const text = (seed: number, length: number) => {
  let x = seed;
  let out = "";
  while (out.length < length) {
    x = (x * 16807) % 2147483647;
    out += x % 11 === 0 ? "\n" : x % 4 === 0 ? " " : "abcdefghij"[x % 10];
  }
  return out.slice(0, length);
};

const all = (path: string) => {
  using file = TokenFile.open(path);
  return [...file.read(0, file.length)];
};

test("tokenizers encode as their tables say and decode what they encoded", async () => {
  const [bytes, gpt2, tiny] = await tokenizers();
  expect(bytes.encode("hé")).toEqual([104, 195, 169]);
  // From the published GPT-2 vocabulary.
  expect(gpt2.encode("Hello world")).toEqual([15496, 995]);
  expect(gpt2.encode("<|endoftext|>")).not.toContain(50256);
  expect([gpt2.vocabSize, gpt2.endOfText]).toEqual([50257, 50256]);
  expect(tiny.encode("ab abé")).toEqual([5, 6, 3, 4]);
  expect([tiny.vocabSize, tiny.endOfText]).toEqual([8, 7]);
  for (const t of [bytes, gpt2]) {
    for (const sample of ["", "plain", "naïve café 日本語 🙂\n\ttabs", "a".repeat(1000)])
      expect(t.decode(t.encode(sample))).toBe(sample);
    const again = await loadTokenizer(JSON.parse(JSON.stringify(t.spec)));
    expect(again.encode("round trip")).toEqual(t.encode("round trip"));
  }
  await expect(loadTokenizer("nothing-here")).rejects.toThrow(/bytes.*gpt2/);
});

test("a text stream shows whole characters only, and everything in the end", async () => {
  for (const tokenizer of (await tokenizers()).slice(0, 2)) {
    const sample = "日本 🙂 é, plain; 日本語日本語";
    const stream = new TextStream(tokenizer);
    const pieces = tokenizer.encode(sample).map((id) => stream.push(id));
    expect(pieces.join("")).not.toContain("\ufffd");
    expect(pieces.join("") + stream.end()).toBe(sample);
  }
  const [bytes] = await tokenizers();
  const stream = new TextStream(bytes);
  const invalid = [0xff, 0xfe, 0xff, 0xfe, 0xff, 65].map((id) => stream.push(id)).join("") + stream.end();
  expect(invalid).toBe("\ufffd".repeat(5) + "A");
});

test("prepare deals every byte to one part, the same way each time", async () => {
  mkdirSync(at("in", "deep"), { recursive: true });
  writeFileSync(at("in", "b.txt"), text(1, 40_000));
  writeFileSync(at("in", "copy.txt"), "the same\n");
  writeFileSync(at("in", "deep", "a.md"), "the same\n");
  writeFileSync(at("in", "skipped.bin"), "not text");
  const options = { sources: [at("in")], holdOut: 0.1, block: 512 };
  const first = await prepare({ ...options, out: at("one") });
  const again = await prepare({ ...options, out: at("two") });
  expect(first).toMatchObject({ documents: 2, duplicates: 1, bytes: 40_009 });
  for (const part of ["train.bin", "val.bin"])
    expect(readFileSync(at("one", part))).toEqual(readFileSync(at("two", part)));
  expect(again.train.tokens).toBe(first.train.tokens);
  expect(first.train.tokens + first.val.tokens).toBe(40_009 + 2); // and an end of text for each document
  expect(first.val.tokens / 40_009).toBeGreaterThan(0.08);
  expect(first.val.tokens / 40_009).toBeLessThan(0.12);
  const count = (ids: number[]) => ids.reduce((n, id) => n + (id === 10 ? 1 : 0), 0);
  const lines = (text(1, 40_000) + "the same\n").split("\n").length - 1;
  expect(count(all(at("one", "train.bin"))) + count(all(at("one", "val.bin")))).toBe(lines);
  expect(readdirSync(at("one")).sort()).toEqual(["train.bin", "train.json", "val.bin", "val.json"]);
});

test("a short text gives its end; .jsonl and standard input are documents too", async () => {
  await prepare({
    sources: ["-"],
    out: at("short"),
    stdin: Readable.from(["0123456789\n", "0123456789\n"]),
    holdOut: 0.5,
  });
  expect(Buffer.from(all(at("short", "train.bin"))).toString()).toBe("0123456789\n");
  expect(Buffer.from(all(at("short", "val.bin"))).toString()).toBe("0123456789\n\0");
  writeFileSync(
    at("lines.jsonl"),
    `${JSON.stringify({ body: text(3, 400) })}\n\n${JSON.stringify({ body: text(4, 400) })}\n`,
  );
  const lines = await prepare({ sources: [at("lines.jsonl")], out: at("jsonl"), field: "body", holdOut: 0.2 });
  expect(lines).toMatchObject({ documents: 2, bytes: 800 });
  await expect(prepare({ sources: [at("lines.jsonl")], out: at("jsonl") })).rejects.toThrow(/line 1.*"text"/s);
  expect(all(at("jsonl", "train.bin")).length).toBe(lines.train.tokens); // as it was
});

test("ids of 65,536 and more take 32 bits", async () => {
  const big = structuredClone(TINY);
  big.added_tokens[0].id = 70_000;
  writeFileSync(at("big.json"), JSON.stringify(big));
  writeFileSync(at("abab.txt"), "ab ab ".repeat(50));
  await prepare({ sources: [at("abab.txt")], out: at("big"), tokenizer: at("big.json"), holdOut: 0.3 });
  using file = TokenFile.open(at("big", "val.bin"));
  expect(file.info.dtype).toBe("uint32");
  expect(file.read(file.length - 1, 1)[0]).toBe(70_000);
});

test("missing, short, damaged and empty files are refused and nothing is harmed", async () => {
  await expect(prepare({ sources: [at("absent")], out: at("none") })).rejects.toThrow(/no file or folder/);
  writeFileSync(at("empty.txt"), "");
  await expect(prepare({ sources: [at("empty.txt")], out: at("none") })).rejects.toThrow(/too little text/);
  expect(readdirSync(at("none"))).toEqual([]);
  writeFileSync(at("some.txt"), text(5, 2000));
  await prepare({ sources: [at("some.txt")], out: at("hurt") });
  const path = at("hurt", "val.bin");
  const info = JSON.parse(readFileSync(infoPath(path), "utf8"));
  writeFileSync(infoPath(path), JSON.stringify({ ...info, vocabSize: 50 }));
  using file = TokenFile.open(path);
  expect(() => file.read(0, 20)).toThrow(/must be below 50/);
  expect(() => file.read(file.length, 1)).toThrow(/asked for/);
  truncateSync(path, 7);
  expect(() => TokenFile.open(path)).toThrow(/cut short/);
  expect(() => TokenFile.open(at("absent.bin"))).toThrow(/run prepare/);
});
