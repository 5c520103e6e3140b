import { fork } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { type Device, Generator, Scope } from "../src/index.js";
import { GPT, type GPTConfig } from "../src/models/index.js";
import { AdamW } from "../src/nn/index.js";
import type { Figure, Question } from "./context.js";
import { interleave } from "./measure.js";
import { LEARNING_RATE, peerConfig, peerText, RATES } from "./peers/gpt.js";

/** f32 rounding through a few updates; beyond it a peer trains something else. */
const LOSS_TOLERANCE = 1e-4;

interface Trainer {
  key: string;
  threads: number;
  /** Losses before each update so far. */
  losses: number[];
  /** Milliseconds of one step, by the trainer's own clock. */
  step(): Promise<number>;
  end(): void;
}

function ours(device: Device, threads: number, config: GPTConfig, key: string): Trainer {
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
  return { key, threads, losses, step, end };
}

async function peer(name: "tfjs" | "jax-js", threads: number, tokens: number): Promise<Trainer> {
  const path = fileURLToPath(new URL("./peers/gpt-child.js", import.meta.url));
  const child = fork(path, [name, String(threads), String(tokens)], { stdio: ["ignore", 2, 2, "ipc"] });
  const reply = async () => {
    const ended = once(child, "exit").then(([code]) => {
      throw new Error(`${name}: its process ended (${code})`);
    });
    return (await Promise.race([once(child, "message"), ended]))[0];
  };
  const { threads: own } = await reply();
  const losses: number[] = [];
  const step = async () => {
    const answer = reply();
    child.send("step");
    const { loss, milliseconds } = await answer;
    losses.push(loss);
    return milliseconds;
  };
  return { key: `${name}, ${own} thread${own > 1 ? "s" : ""}`, threads: own, losses, step, end: () => child.kill() };
}

export const trainingPeers: Question = {
  name: "training-peers",
  question: "How much faster does a GPT train than one in tfjs-wasm and jax-js? (4 layers, n=256, T=1,024, AdamW)",
  target: "1.5 times the better of the two, power attention against their softmax",
  async run(context) {
    const softmax = peerConfig(context.quick ? 256 : 1024);
    const power: GPTConfig = { ...softmax, attention: "power" };
    const threadCounts = [...new Set([1, context.threads])];
    const own: Trainer[] = [];
    for (const threads of threadCounts) {
      const device = await context.device(threads);
      own.push(ours(device, threads, power, `ours, power, ${threads}`));
      own.push(ours(device, threads, softmax, `ours, softmax, ${threads}`));
    }
    const peers = [await peer("tfjs", 1, softmax.contextLength)];
    for (const threads of threadCounts) peers.push(await peer("jax-js", threads, softmax.contextLength));
    try {
      const all = [...own, ...peers];
      const times = await interleave(Object.fromEntries(all.map(({ key, step }) => [key, step])), {
        warmUp: 2,
        rounds: context.quick ? 2 : 5,
      });
      const rate = (key: string) => (1000 * softmax.contextLength) / times[key].median;
      const wanted = own.find(({ key }) => key === "ours, softmax, 1")!.losses;
      const figures: Figure[] = peers.map(({ key, losses }) => ({
        name: `${key}: largest difference of the losses`,
        value: Math.max(...losses.map((loss, k) => Math.abs(loss - wanted[k]))),
        ...{ unit: "", atMost: LOSS_TOLERANCE, correctness: true },
      }));
      for (const threads of threadCounts) {
        const rivals = peers.filter((rival) => rival.threads === threads).map(({ key }) => rate(key));
        for (const kind of ["power", "softmax"]) {
          const key = `ours, ${kind}, ${threads}`;
          const value = rate(key) / Math.max(...rivals);
          // With more threads only jax-js takes part: tfjs has none in Node.
          const atLeast = kind === "power" ? 1.5 : undefined;
          figures.push({
            name: `${key} against the better peer`,
            value,
            unit: "×",
            atLeast,
            spread: times[key].spread,
          });
        }
      }
      const rows = all.map(({ key }) => [key, rate(key), times[key].median, times[key].spread]);
      return {
        figures,
        table: { columns: ["trainer", "tokens/s", "ms a step", "spread"], rows },
        notes: { tokens: softmax.contextLength, layers: softmax.nLayer, width: softmax.nEmbd, heads: softmax.nHead },
      };
    } finally {
      for (const trainer of [...own, ...peers]) trainer.end();
    }
  },
};
