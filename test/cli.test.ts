import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { findCheckpoint, TRAIN_OPTIONS } from "../src/train/index.js";

const root = fileURLToPath(new URL("..", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "cli-test-"));
const at = (...path: string[]) => join(folder, ...path);
const main = join(root, "dist/src/cli/main.js");

const MODEL = "--n-layer 1 --n-embd 16 --n-head 2 --head-size 8 --context-length 16 --batch-size 4 --warmup 2".split(
  " ",
);
const RUN = [...MODEL, ..."--threads 1 --eval-every 4 --eval-batches 2 --save-every 4 --sample-tokens 0".split(" ")];

function start(args: string[]): ChildProcess {
  return spawn(process.execPath, [main, ...args], { cwd: folder, stdio: ["pipe", "pipe", "pipe"] });
}

interface Outcome {
  code: number | null;
  signal: string | null;
  out: string;
  err: string;
}

async function finish(child: ChildProcess): Promise<Outcome> {
  let [out, err] = ["", ""];
  child.stdout!.on("data", (chunk) => (out += chunk));
  child.stderr!.on("data", (chunk) => (err += chunk));
  const [code, signal] = await once(child, "close");
  return { code, signal, out, err };
}

async function run(...args: string[]): Promise<Outcome> {
  const child = start(args);
  child.stdin!.end();
  return finish(child);
}

async function works(...args: string[]): Promise<string> {
  const { code, out, err } = await run(...args);
  expect(err).not.toContain("error:");
  expect(code, err).toBe(0);
  return out;
}

/** Fails with one sentence, without a stack. */
async function refuses(message: RegExp, ...args: string[]): Promise<void> {
  const { code, err } = await run(...args);
  expect(err).toMatch(message);
  expect(err).not.toMatch(/\n\s+at /);
  expect(code).toBe(1);
}

const bytesOf = (run: string, file = "model.safetensors") => readFileSync(join(findCheckpoint(at(run)), file));

beforeAll(async () => {
  const words = ["the ", "cat ", "sat ", "on ", "a ", "mat.\n"];
  writeFileSync(at("text.txt"), Array.from({ length: 1500 }, (_, k) => words[(k * k + (k >> 2)) % 6]).join(""));
  await works("prepare", "text.txt", "-o", "data", "--hold-out", "0.1", "--block", "256");
  await works("train", "data", "-o", "run", "--steps", "12", ...RUN);
});
afterAll(() => rmSync(folder, { recursive: true }));

test("--help shows every option of train with its default", async () => {
  const help = (await works("train", "--help")).replace(/\s+/g, " ");
  for (const [name, spec] of Object.entries(TRAIN_OPTIONS)) {
    expect(help).toContain(`--${name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)} `);
    expect(help, name).toContain(`${spec.help} (default: ${spec.default})`);
  }
  expect(await works("--version")).toMatch(/^\d+\.\d+\.\d+/);
});

test("prepare reads standard input and .jsonl; train takes a JSON file under its flags", async () => {
  const child = start(["prepare", "-", "-o", "piped", "--tokenizer", "gpt2", "--hold-out", "0.5"]);
  child.stdin!.end("One sentence of text.\nAnother sentence, longer than the first one.\n");
  const { out, code } = await finish(child);
  expect(code).toBe(0);
  expect(out).toMatch(/1 documents, 67 bytes/);
  writeFileSync(at("options.json"), JSON.stringify({ steps: 2, seed: 5, sampleTokens: 20 }));
  const text = await works(
    "train",
    "data",
    "-o",
    "from-file",
    "-c",
    "options.json",
    ...MODEL,
    "--steps",
    "3",
    "--bias",
  );
  expect(text).toContain("finished after step 3");
  expect(text).toMatch(/step 3: "/); // the sample
  const config = JSON.parse(readFileSync(at("from-file", "config.json"), "utf8"));
  expect(config.train).toMatchObject({ steps: 3, seed: 5, bias: true, contextLength: 16 });
});

test("generate writes text, takes a prompt from anywhere and reports its times", async () => {
  const generate = (...more: string[]) => run("generate", "run", "--max-tokens", "20", "--threads", "1", ...more);
  const first = await generate("the cat", "--stats");
  expect(first.code).toBe(0);
  const stats = JSON.parse(first.err);
  expect(stats).toMatchObject({ tokens: 20, promptTokens: 8, end: "maxTokens" });
  expect(stats.tokensPerSecond).toBeGreaterThan(0);
  expect(stats.timeToFirstToken).toBeGreaterThan(0);
  writeFileSync(at("prompt.txt"), "the cat");
  expect((await generate("--prompt-file", "prompt.txt")).out).toBe(first.out);
  const child = start(["generate", "run", "--max-tokens", "20", "--threads", "1", "--prompt-file", "-"]);
  child.stdin!.end("the cat");
  expect((await finish(child)).out).toBe(first.out);
  const saved = await generate("the cat", "--save-state", "state.safetensors");
  expect(saved.out).toBe(first.out);
  expect((await generate("--load-state", "state.safetensors")).out).toBe(first.out);
  const greedy = await generate("the cat", "--temperature", "0", "--stop", "zzz", "--seed", "9");
  expect((await generate("the cat", "--temperature", "0", "--seed", "8")).out).toBe(greedy.out);
});

test("eval gives the loss that training gave, and info the machine", async () => {
  const result = JSON.parse(await works("eval", "run", "data", "--batch-size", "4", "--batches", "2", "--json"));
  const evals = readFileSync(at("run", "metrics.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  expect(result.loss).toBeCloseTo(evals.at(-1).loss, 5);
  expect(result.byPosition.length).toBe(16);
  expect(await works("eval", "run", "data/val.bin", "--context-length", "64")).toMatch(/perplexity .*position 32–63/s);
  const info = JSON.parse(await works("info", "--json"));
  expect(info.devices.wasm).toMatch(/^wasm \(\d+ thread/);
});

test("Ctrl-C saves and says how to resume, and the resumed run is the uninterrupted one", async () => {
  const child = start(["train", "data", "-o", "stopped", "--steps", "150", ...RUN]);
  const outcome = finish(child);
  for (let seen = ""; !seen.includes("step 8/"); seen += (await once(child.stdout!, "data"))[0]);
  child.kill("SIGINT");
  const { code, out } = await outcome;
  expect(code).toBe(0);
  expect(out).toMatch(/aborted after step \d+/);
  expect(out).toContain("resume: power-attention train --resume stopped");
  await works("train", "--resume", "stopped");
  await works("train", "data", "-o", "straight", "--steps", "150", ...RUN);
  expect(bytesOf("stopped").equals(bytesOf("straight"))).toBe(true);
  expect(bytesOf("stopped", "optimizer.safetensors").equals(bytesOf("straight", "optimizer.safetensors"))).toBe(true);
});

test("a process killed while it writes a checkpoint leaves whole ones", async () => {
  const args = ["--steps", "60", ...RUN, "--save-every", "1", "--eval-every", "0"];
  await works("train", "data", "-o", "unharmed", ...args);
  let child = start(["train", "data", "-o", "killed", ...args]);
  let caught = 0;
  for (let round = 0; round < 4; round++) {
    const end = once(child, "close");
    let over = false;
    end.then(() => (over = true));
    const writing = () => {
      try {
        return readdirSync(at("killed", "checkpoints")).some((name) => name.startsWith("writing-"));
      } catch {
        return false;
      }
    };
    const index = () => {
      try {
        return readFileSync(at("killed", "checkpoints", "index.json"), "utf8");
      } catch {
        return "";
      }
    };
    const until = async (holds: () => boolean) => {
      const deadline = Date.now() + 60_000;
      while (!over && !holds() && Date.now() < deadline) await new Promise((resolve) => setImmediate(resolve));
    };
    // Not in the first checkpoint of a round, or no run would get anywhere.
    const before = index();
    await until(() => index() !== before);
    await until(writing);
    if (over) break;
    child.kill("SIGKILL");
    await end;
    caught++;
    expect(await works("eval", "killed", "data", "--batches", "1")).toContain("perplexity");
    child = start(["train", "--resume", "killed"]);
  }
  const { code, err } = child.exitCode === null ? await finish(child) : { code: child.exitCode, err: "" };
  expect(code, err).toBe(0);
  expect(caught).toBeGreaterThan(0);
  expect(bytesOf("killed").equals(bytesOf("unharmed"))).toBe(true);
  expect(readdirSync(at("killed", "checkpoints")).sort()).toEqual(readdirSync(at("unharmed", "checkpoints")).sort());
});

test("bad input gets a sentence and a nonzero exit", async () => {
  await refuses(/error: prepare: no file or folder absent/, "prepare", "absent", "-o", "x");
  writeFileSync(at("empty.txt"), "");
  await refuses(/too little text/, "prepare", "empty.txt", "-o", "x");
  await refuses(/cannot read .*nowhere.*run prepare/s, "train", "nowhere", "-o", "x");
  await refuses(/needs at least 5001 tokens/, "train", "data", "-o", "x", "--context-length", "5000");
  await refuses(/batchSize must be an integer of 1 or more, got 0/, "train", "data", "-o", "x", "--batch-size", "0");
  await refuses(/argument 'big' is invalid|a number is needed/, "train", "data", "-o", "x", "--steps", "big");
  await refuses(/unknown option/, "train", "data", "--stepz", "4");
  await refuses(/already holds a run/, "train", "data", "-o", "run");
  await refuses(/has no checkpoint yet|no folder/, "generate", "data", "hello");
  await refuses(/temperature must be 0 or more/, "generate", "run", "--temperature", "-1");
  await refuses(/cannot read the prompt/, "generate", "run", "--prompt-file", "absent.txt");
  await refuses(/prepared with 50257 tokens, the model knows 256/, "eval", "run", "piped");
  expect(existsSync(at("x", "config.json"))).toBe(false);
});

test("damaged checkpoints and token files are named", async () => {
  cpSync(at("run"), at("hurt"), { recursive: true });
  const checkpoint = findCheckpoint(at("hurt"));
  const config = readFileSync(join(checkpoint, "config.json"), "utf8");
  writeFileSync(join(checkpoint, "config.json"), config.replace('"nLayer": 1', '"nLayer": 2'));
  await refuses(/does not fit its config\.json/, "generate", "hurt", "x");
  writeFileSync(join(checkpoint, "config.json"), config);
  truncateSync(join(checkpoint, "model.safetensors"), 999);
  await refuses(/cannot read .*model\.safetensors.*corrupt/s, "generate", "hurt", "x");
  cpSync(at("data"), at("hurt-data"), { recursive: true });
  const info = readFileSync(at("hurt-data", "train.json"), "utf8");
  writeFileSync(at("hurt-data", "train.json"), info.replace('"vocabSize":256', '"vocabSize":100'));
  await refuses(
    /prepared with 100 tokens, the model knows 256/,
    "train",
    "hurt-data",
    "-o",
    "y",
    ...RUN,
    "--steps",
    "2",
  );
  truncateSync(at("hurt-data", "val.bin"), 11);
  await refuses(/cut short/, "eval", "run", "hurt-data");
});

test("a full disk harms no file", async () => {
  cpSync(at("data"), at("full-data"), { recursive: true });
  cpSync(at("run"), at("full-run"), { recursive: true });
  writeFileSync(at("more.txt"), "some other text\n".repeat(4000));
  const limited = async (...args: string[]) => {
    // No file may grow past 8 KiB; the signal that this raises is ignored, so that writing fails as on a full disk.
    const child = spawn("bash", ["-c", `ulimit -f 8; trap "" XFSZ; exec "$0" "$@"`, process.execPath, main, ...args], {
      cwd: folder,
    });
    return finish(child);
  };
  const before = readFileSync(at("full-data", "train.bin"));
  const prepared = await limited("prepare", "more.txt", "-o", "full-data");
  expect(prepared.code).toBe(1);
  expect(prepared.err).toMatch(/^error: .*file/);
  expect(readFileSync(at("full-data", "train.bin")).equals(before)).toBe(true);
  expect(readdirSync(at("full-data")).sort()).toEqual(readdirSync(at("data")).sort());
  const model = bytesOf("full-run");
  const trained = await limited("train", "--resume", "full-run", "--steps", "16");
  expect(trained.code).toBe(1);
  expect(bytesOf("full-run").equals(model)).toBe(true);
  expect(readdirSync(at("full-run", "checkpoints")).sort()).toEqual(readdirSync(at("run", "checkpoints")).sort());
  expect(await works("generate", "full-run", "the", "--max-tokens", "3")).toMatch(/\n$/);
});
