import { type Device, Generator, Scope } from "../src/index.js";
import { GPT, type GPTConfig } from "../src/models/index.js";
import { AdamW } from "../src/nn/index.js";
import type { Figure, Question } from "./context.js";
import { interleave, type Timing } from "./measure.js";
import { LEARNING_RATE, peerConfig, peerText, RATES } from "./peers/gpt.js";
import { GptProcess } from "./peers/gpt-process.js";

/** f32 rounding through a few updates; beyond it a peer trains something else. */
const LOSS_TOLERANCE = 1e-4;

interface Trainer {
  key: string;
  losses: number[];
  /** Milliseconds of one step, by the trainer's own clock. */
  step(): Promise<number>;
  end(): void;
}

function ours(device: Device, config: GPTConfig, key: string): Trainer {
  const model = new GPT(config, { device, generator: new Generator(1) });
  const optimizer = new AdamW(model.parameters(), RATES);
  const text = peerText(config);
  const shape = [1, config.contextLength];
  const losses: number[] = [];
  const step = async () => {
    const start = performance.now();
    using _ = new Scope();
    const loss = model.loss(model.ids(text.subarray(0, -1), shape), model.ids(text.subarray(1), shape));
    loss.backward();
    optimizer.update(LEARNING_RATE, optimizer.squaredNorm());
    model.clearGrad();
    losses.push(await loss.item());
    return performance.now() - start;
  };
  const end = () => {
    optimizer.dispose();
    model.dispose();
  };
  return { key, losses, step, end };
}

/** How much faster than the fastest rival; `bound` where that one was ended early, so that the ratio is at least this. */
export function against(own: number, rivals: readonly { milliseconds: number; late?: boolean }[]) {
  const best = rivals.reduce((a, b) => (b.milliseconds < a.milliseconds ? b : a));
  return { ratio: best.milliseconds / own, bound: best.late === true };
}

export const trainingPeers: Question = {
  name: "training-peers",
  question: "How much faster does a GPT train than one in tfjs-wasm and jax-js? (4 layers, n=256, T=1,024, AdamW)",
  target: "1.5 times the better of the two, power attention against their softmax",
  async run(context) {
    const softmax = peerConfig(context.quick ? 256 : 1024);
    const power: GPTConfig = { ...softmax, attention: "power" };
    const tokens = softmax.contextLength;
    const threadCounts = [...new Set([1, context.threads])];
    const own: Trainer[] = [];
    const peers: GptProcess[] = [];
    try {
      for (const [name, threads] of [["tfjs", 1] as const, ...threadCounts.map((n) => ["jax-js", n] as const)]) {
        const peer = await GptProcess.start(name, threads, tokens);
        peers.push(peer);
        context.progress(`training-peers: ${peer.key}: ${peer.late ? "no step in its time" : "compiled"}`);
      }
      for (const threads of threadCounts) {
        const device = await context.device(threads);
        own.push(ours(device, power, `ours, power, ${threads}`), ours(device, softmax, `ours, softmax, ${threads}`));
      }
      const started = peers.filter(({ late }) => !late);
      const times: Record<string, Timing> = await interleave(
        Object.fromEntries([...own, ...started].map((trainer) => [trainer.key, () => trainer.step()])),
        // A peer takes seconds a step, and has made one.
        { warmUp: 1, rounds: context.quick ? 2 : 5 },
      );
      const rate = (key: string) => (1000 * tokens) / times[key].median;
      const wanted = own.find(({ key }) => key === "ours, softmax, 1")!.losses;
      const figures: Figure[] = started
        .filter(({ losses }) => losses.length > 0)
        .map(({ key, losses }) => ({
          name: `${key}: largest difference of the losses`,
          value: Math.max(...losses.slice(0, wanted.length).map((loss, k) => Math.abs(loss - wanted[k]))),
          ...{ unit: "", atMost: LOSS_TOLERANCE, correctness: true },
        }));
      for (const threads of threadCounts) {
        // A peer that cannot use all threads (tfjs has one in Node) takes part with those that it has.
        const rivals = started.filter((peer) => peer.threads <= threads);
        if (rivals.length === 0) continue;
        for (const kind of ["power", "softmax"]) {
          const key = `ours, ${kind}, ${threads}`;
          const timed = rivals.map((peer) => ({ milliseconds: times[peer.key].median, late: peer.late === "step" }));
          const { ratio, bound } = against(times[key].median, timed);
          figures.push({
            name: `${key} against the better peer${bound ? ", at least" : ""}`,
            value: ratio,
            ...{ unit: "×", atLeast: kind === "power" ? 1.5 : undefined, spread: times[key].spread },
          });
        }
      }
      const rows: (string | number)[][] = [...own, ...started].map(({ key }) => {
        const late = peers.find((peer) => peer.key === key)?.late;
        return [late ? `${key}, ended: slower than` : key, rate(key), times[key].median, times[key].spread];
      });
      for (const { key, late } of peers)
        if (late === "start") rows.push([`${key}, ended before its first step`, "", "", ""]);
      return {
        figures,
        table: { columns: ["trainer", "tokens/s", "ms a step", "spread"], rows },
        notes: { tokens, layers: softmax.nLayer, width: softmax.nEmbd, heads: softmax.nHead },
      };
    } finally {
      for (const trainer of [...own, ...peers]) trainer.end();
    }
  },
};
