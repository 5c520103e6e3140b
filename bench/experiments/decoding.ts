import { Generator, noGrad, Scope } from "../../src/index.js";
import { GPT, gptConfig } from "../../src/models/index.js";
import { timing } from "../measure.js";
import { deviceAt, type Experiment, type Place, shown } from "./experiment.js";

const POSITIONS = [100, 1000, 10_000, 30_000];
const ATTENTIONS = ["power", "softmax"] as const;
/** Tokens of a round: power attention folds its tail into the state once in so many. */
const TOKENS = 32;
const ROUNDS = 6;
/** Untimed tokens before the first round, since engines tier code up only after it ran. */
const WARM = 64;

interface Point {
  attention: (typeof ATTENTIONS)[number];
  position: number;
  /** Of a token: the mean over a round, the median of the rounds. */
  milliseconds: number;
  /** What the caches hold, in bytes. */
  bytes: number;
}

/** A text being written, `position` tokens long when its first round begins. */
async function writer(model: GPT, position: number) {
  const caches = model.caches(1);
  const id = (t: number) => (t * 31) % model.config.vocabSize;
  let at = 0;
  const take = async (count: number) => {
    using _ = new Scope();
    const ids = Array.from({ length: count }, (_, k) => id(at + k));
    at += count;
    await noGrad(() => model.forward(model.ids(ids, [1, count]), { caches, last: true })).data();
  };
  await take(position - WARM);
  while (at < position) await take(1);
  return {
    position,
    times: [] as number[],
    async round() {
      const start = performance.now();
      for (let k = 0; k < TOKENS; k++) await take(1);
      this.times.push((performance.now() - start) / TOKENS);
    },
    bytes: () => caches.reduce((sum, cache) => sum + cache.bytes, 0),
    end() {
      for (const cache of caches) cache.dispose();
    },
  };
}

async function timed(place: Place): Promise<{ value: Point[]; device: string }> {
  const device = await deviceAt(place);
  const models = ATTENTIONS.map((attention) => {
    const config = gptConfig("1M", { vocabSize: 256, attention });
    return { attention, model: new GPT(config, { device, generator: new Generator(1) }) };
  });
  const writers = [];
  for (const { attention, model } of models) {
    for (const position of POSITIONS) writers.push({ attention, ...(await writer(model, position)) });
    place.progress(`${attention}: read up to ${shown(POSITIONS[POSITIONS.length - 1])} tokens`);
  }
  // All take turns, so that a change of the machine's pace meets all of them; the first round is not counted.
  for (let round = -1; round < ROUNDS; round++) {
    for (const each of writers) await each.round();
    place.progress(`round ${round + 1} of ${ROUNDS}`);
  }
  const value = writers.map(({ attention, position, times, bytes }) => {
    return { attention, position, milliseconds: timing(times.slice(1)).median, bytes: bytes() };
  });
  for (const each of writers) each.end();
  for (const { model } of models) model.dispose();
  if (place.threads > 0) device.dispose();
  return { value, device: device.description };
}

export const decoding: Experiment<Point[]> = {
  name: "decoding",
  question:
    "Does generation slow down? Milliseconds per token and bytes carried, by position, beside softmax with a cache.",
  jobs() {
    const settings = { model: "1M", tokensOfRound: TOKENS, rounds: ROUNDS };
    return [{ name: "decoding", settings, alone: true, run: timed }];
  },
  findings([{ value }]) {
    const lines = ATTENTIONS.map((name) => [name, value.filter(({ attention }) => attention === name)] as const);
    return {
      title: "Time and memory of a token, by position",
      columns: ["attention", "position", "ms per token", "MiB carried"],
      rows: value.map(({ attention, position, milliseconds, bytes }) => [
        ...[attention, position, milliseconds, bytes / 2 ** 20],
      ]),
      series: Object.fromEntries(
        lines.map(([name, points]) => [name, points.map((p): [number, number] => [p.position, p.milliseconds])]),
      ),
      axes: { x: "position", y: "ms per token", logX: true, logY: true },
      seen: lines.map(([name, points]) => {
        const [first, last] = [points[0], points[points.length - 1]];
        const ratio = last.milliseconds / first.milliseconds;
        const memory = last.bytes / first.bytes;
        return `${name}: at position ${shown(last.position)} a token takes ${ratio.toFixed(2)} times as long as at ${shown(first.position)}, with ${memory.toFixed(2)} times the memory.`;
      }),
    };
  },
};
