import { mkdtempSync, readFileSync, rmSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { useDevices } from "../../test/compare-devices.js";
import { loadTokenizer } from "../data/index.js";
import { GPT, type GPTConfig, gptConfig } from "../models/index.js";
import { Generator } from "../tensor/random.js";
import {
  copySession,
  generate,
  generateText,
  loadSession,
  readPrompt,
  SAMPLE_DEFAULTS,
  sampleToken,
  saveSession,
} from "./index.js";

const devices = useDevices();
const folder = mkdtempSync(join(tmpdir(), "generate-test-"));
afterAll(() => rmSync(folder, { recursive: true }));

const bytes = await loadTokenizer("bytes");
const make = (rest: Partial<GPTConfig> = {}, seed = 1) => {
  const sizes = { vocabSize: 256, contextLength: 64, nLayer: 2, nEmbd: 16, nHead: 2, headSize: 8 };
  return new GPT(gptConfig("tiny", { ...sizes, ...rest }), {
    device: devices.oracle(),
    generator: new Generator(seed),
  });
};
/** Bytes that a random model likes are seldom text: compare ids, not what they look like. */
const write = async (model: GPT, options: object) => (await generateText(model, bytes, options)).text;

test("a seed decides, greedy needs none, and what is read counts", async () => {
  const model = make();
  const first = await write(model, { prompt: "abc", maxTokens: 30, seed: 1 });
  expect(await write(model, { prompt: "abc", maxTokens: 30, seed: 1 })).toBe(first);
  expect(await write(model, { prompt: "abc", maxTokens: 30, seed: 2 })).not.toBe(first);
  expect(await write(model, { prompt: "xyz!", maxTokens: 30, seed: 1 })).not.toBe(first);
  const greedy = await write(model, { prompt: "abc", maxTokens: 10, temperature: 0, seed: 1 });
  expect(await write(model, { prompt: "abc", maxTokens: 10, temperature: 0, seed: 2 })).toBe(greedy);
});

test("memory does not grow with the text", async () => {
  const model = make();
  const stats = async (maxTokens: number) => (await generateText(model, bytes, { maxTokens, topK: 20 })).stats;
  await stats(1);
  const used = devices.oracle().memory().used;
  const [short, long] = [await stats(40), await stats(120)];
  expect(long.stateBytes).toBe(short.stateBytes);
  expect(devices.oracle().memory().used).toBe(used);
  expect(long.tokensPerSecond).toBeGreaterThan(0);
  const softmax = make({ attention: "softmax" });
  const grows = await generateText(softmax, bytes, { maxTokens: 120 });
  expect(grows.stats.stateBytes).toBeGreaterThan(
    (await generateText(softmax, bytes, { maxTokens: 40 })).stats.stateBytes,
  );
});

test("it ends at a stop string, at the end of a document, or when aborted", async () => {
  const model = make();
  const whole = await write(model, { maxTokens: 60, seed: 5 });
  const stop = whole.slice(20, 23);
  const stopped = await generateText(model, bytes, { maxTokens: 60, seed: 5, stop: ["never there", stop] });
  expect(stopped.text).toBe(whole.slice(0, whole.indexOf(stop)));
  expect(stopped.stats.end).toBe("stop");
  const controller = new AbortController();
  const pieces = generate(model, bytes, { maxTokens: 1000, signal: controller.signal });
  await pieces.next();
  controller.abort();
  let last = await pieces.next();
  while (!last.done) last = await pieces.next();
  expect(last.value.end).toBe("aborted");
});

test("a saved session goes on as if nothing had been saved", async () => {
  const model = make();
  const path = join(folder, "session.safetensors");
  const prompt = "a prompt of some length, longer than a fold";
  const want = await write(model, { prompt, maxTokens: 20, seed: 3 });
  const session = await readPrompt(model, bytes, prompt);
  await saveSession(path, model, session);
  const penalty = { maxTokens: 20, seed: 3 };
  expect(await write(model, { ...penalty, session: copySession(session) })).toBe(want);
  expect(await write(model, { ...penalty, session: await loadSession(path, model) })).toBe(want);
  expect(await write(model, { ...penalty, session: await loadSession(path, model), prompt: " and more" })).toBe(
    await write(model, { ...penalty, prompt: `${prompt} and more` }),
  );
  await expect(loadSession(path, make({ nEmbd: 32 }))).rejects.toThrow(/another model/);
  await expect(loadSession(join(folder, "absent"), model)).rejects.toThrow(/cannot read/);
  await expect(saveSession(path, model, await readPrompt(make({ attention: "softmax" }), bytes, "x"))).rejects.toThrow(
    /"power"/,
  );
  expect((await loadSession(path, model)).logits.length).toBe(256); // as it was
  truncateSync(path, readFileSync(path).length - 5);
  await expect(loadSession(path, model)).rejects.toThrow(/cannot read/);
});

test("sampling follows its options", () => {
  const logits = Float32Array.of(Math.log(0.5), Math.log(0.3), Math.log(0.15), Math.log(0.05));
  const none = new Set<number>();
  const shares = (options: object, seen = none) => {
    const generator = new Generator(1);
    const counts = [0, 0, 0, 0];
    for (let k = 0; k < 20000; k++)
      counts[sampleToken(logits, { ...SAMPLE_DEFAULTS, temperature: 1, topP: 1, ...options }, seen, generator)]++;
    return counts.map((n) => n / 20000);
  };
  const near = (got: number[], want: number[]) =>
    expect(Math.max(...got.map((x, k) => Math.abs(x - want[k])))).toBeLessThan(0.015);
  near(shares({}), [0.5, 0.3, 0.15, 0.05]);
  near(shares({ topK: 2 }), [5 / 8, 3 / 8, 0, 0]);
  near(shares({ topP: 0.8 }), [5 / 8, 3 / 8, 0, 0]);
  near(shares({ topP: 0.81 }), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]);
  near(
    shares({ temperature: 0.5 }),
    [0.25, 0.09, 0.0225, 0.0025].map((x) => x / 0.365),
  );
  near(shares({ temperature: 0 }), [1, 0, 0, 0]);
  expect(shares({ repetitionPenalty: 3 }, new Set([0]))[0]).toBeLessThan(0.25);
  expect(() => sampleToken(Float32Array.of(Number.NaN), SAMPLE_DEFAULTS, none, new Generator(1))).toThrow(
    /weights are damaged/,
  );
});

test("options out of range are refused", async () => {
  const model = make();
  for (const [options, message] of [
    [{ temperature: -1 }, /temperature/],
    [{ topP: 0 }, /topP/],
    [{ topK: 1.5 }, /topK/],
    [{ maxTokens: -1 }, /maxTokens/],
    [{ repetitionPenalty: 0 }, /repetitionPenalty/],
  ] as const) {
    await expect(generateText(model, bytes, options)).rejects.toThrow(message);
  }
});
