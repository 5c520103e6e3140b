import { Generator, noGrad, Scope } from "../../src/index.js";
import { GPT, gptConfig } from "../../src/models/index.js";
import { deviceAt, type Experiment, groups, type Place, shown } from "./experiment.js";

const POSITIONS = [100, 1000, 10_000, 30_000];
const ATTENTIONS = ["power", "softmax"] as const;
/** Tokens timed at each position: what happens every 32 or 64 tokens (a fold, a join) happens in them as often as it does. */
const TIMED = 128;
const WARM = 64;

interface Point {
  position: number;
  /** Mean milliseconds of a token. */
  milliseconds: number;
  /** What the caches hold, in bytes. */
  bytes: number;
}

async function timed(attention: "power" | "softmax", place: Place): Promise<{ value: Point[]; device: string }> {
  const device = await deviceAt(place);
  const config = gptConfig("1M", { vocabSize: 256, attention });
  const model = new GPT(config, { device, generator: new Generator(1) });
  const id = (t: number) => (t * 31) % config.vocabSize;
  const value: Point[] = [];
  for (const position of POSITIONS) {
    const caches = model.caches(1);
    const take = async (ids: number[]) => {
      using _ = new Scope();
      await noGrad(() => model.forward(model.ids(ids, [1, ids.length]), { caches, last: true })).data();
    };
    // All but the last tokens at once; then some that are not timed, so that the engine is warm.
    await take(Array.from({ length: position - WARM }, (_, t) => id(t)));
    for (let t = position - WARM; t < position; t++) await take([id(t)]);
    const start = performance.now();
    for (let t = position; t < position + TIMED; t++) await take([id(t)]);
    const milliseconds = (performance.now() - start) / TIMED;
    value.push({ position, milliseconds, bytes: caches.reduce((sum, cache) => sum + cache.bytes, 0) });
    place.progress(`at ${position}: ${milliseconds.toFixed(2)} ms per token`);
    for (const cache of caches) cache.dispose();
  }
  model.dispose();
  if (place.threads > 0) device.dispose();
  return { value, device: device.description };
}

export const decoding: Experiment<Point[]> = {
  name: "decoding",
  question:
    "Does generation slow down? Milliseconds per token and bytes carried, by position, beside softmax with a cache.",
  jobs() {
    return ATTENTIONS.map((attention) => ({
      name: `decoding-${attention}`,
      settings: { attention, model: "1M", timed: TIMED },
      alone: true,
      run: (place) => timed(attention, place),
    }));
  },
  findings(records) {
    const lines = groups(records, "attention", ATTENTIONS).map(
      ([attention, list]) => [attention, list[0].value] as const,
    );
    const ratio = (points: Point[]) => points[points.length - 1].milliseconds / points[0].milliseconds;
    return {
      title: "Time and memory of a token, by position",
      columns: ["attention", "position", "ms per token", "MiB carried"],
      rows: lines.flatMap(([name, points]) =>
        points.map(({ position, milliseconds, bytes }) => [name, position, milliseconds, bytes / 2 ** 20]),
      ),
      series: Object.fromEntries(
        lines.map(([name, points]) => [name, points.map((p): [number, number] => [p.position, p.milliseconds])]),
      ),
      axes: { x: "position", y: "ms per token", logX: true, logY: true },
      seen: lines.map(
        ([name, points]) =>
          `${name}: a token at position ${shown(points[points.length - 1].position)} takes ${ratio(points).toFixed(2)} times as long as at ${points[0].position}.`,
      ),
    };
  },
};
