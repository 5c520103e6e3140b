import { type Context, type Figure, makeInputs, powerTask, type Question, softmaxTask } from "./context.js";
import { mainShape } from "./forward.js";
import { interleave } from "./measure.js";
import type { PeerForm, PeerTask } from "./peers/peer.js";
import { PeerProcess } from "./peers/process.js";

/** f32 rounding of their longest sums; beyond it a peer computes something else. */
const PEER_TOLERANCE = 2e-5;

const TASKS: Record<PeerTask, string> = {
  forward: "forward",
  "forward-backward": "forward and backward",
  "softmax-forward": "softmax attention, forward",
  "softmax-forward-backward": "softmax attention, forward and backward",
};

async function startPeers(context: Context): Promise<{ key: string; threads: number; peer: PeerProcess }[]> {
  const wanted = [
    { key: "tfjs-wasm", name: "tfjs" as const, threads: 1 },
    { key: "jax-js", name: "jax-js" as const, threads: 1 },
    ...(context.threads > 1 ? [{ key: "jax-js", name: "jax-js" as const, threads: context.threads }] : []),
  ];
  const started = [];
  for (const { key, name, threads } of wanted) {
    const peer = await PeerProcess.start(name, threads);
    started.push({ key: `${key}, ${threads} thread${threads > 1 ? "s" : ""}`, threads: peer.threads, peer });
  }
  return started;
}

export const peersQuestion: Question = {
  name: "peers",
  question: "How much faster than the same attention in tfjs-wasm and jax-js operations? (T=4,096, 8 heads, d=64, p=2)",
  target: "4 times the better of the two, thread for thread",
  async run(context) {
    const shape = mainShape(context.quick ? 1024 : 4096);
    const figures: Figure[] = [];
    const rows: (number | string)[][] = [];
    const peers = await startPeers(context);
    try {
      const notes: Record<string, string | number> = { tokens: shape.tokens };
      for (const { key, peer } of peers) {
        context.progress(`peers: checking ${key} against float64`);
        const value = await peer.check();
        figures.push({ name: `${key}: error`, value, unit: "", atMost: PEER_TOLERANCE, correctness: true });
        notes[key] = peer.version;
      }
      for (const [task, label] of Object.entries(TASKS) as [PeerTask, string][]) {
        const forms = new Map<string, PeerForm>();
        for (const { key, peer } of peers) {
          context.progress(`peers: ${label}: choosing the form of ${key}`);
          const form = await peer.choose(task, shape.tokens, shape.headDim);
          forms.set(key, form);
          context.progress(`peers: ${key}: ${form.expansion} ${form.chunkSize}`);
          await peer.load(shape.tokens, shape.heads, shape.headDim);
        }
        const backward = task.endsWith("backward");
        const threadCounts = [...new Set(peers.map(({ threads }) => threads))];
        const devices = await Promise.all(threadCounts.map((threads) => context.device(threads)));
        const inputs = devices.map((device) => makeInputs(device, shape, backward));
        const own = inputs.map((input, k) => {
          const run = task.startsWith("softmax")
            ? softmaxTask(input, backward)
            : powerTask(input, { degree: 2, chunkSize: shape.chunkSize }, backward);
          return [`ours, ${threadCounts[k]}`, run] as const;
        });
        const times = await interleave(
          {
            ...Object.fromEntries(own),
            ...Object.fromEntries(peers.map(({ key, peer }) => [key, () => peer.run(task, forms.get(key)!)])),
          },
          // A peer takes up to half a minute a run.
          { warmUp: 1, rounds: context.quick ? 2 : 3 },
        );
        for (const input of inputs) input.dispose();
        for (const { key, threads } of peers) {
          const ours = times[`ours, ${threads}`].median;
          const { expansion, chunkSize } = forms.get(key)!;
          rows.push([
            label,
            key,
            `${expansion} ${chunkSize}`.trim(),
            times[key].median,
            ours,
            times[key].median / ours,
          ]);
        }
        for (const [k, threads] of threadCounts.entries()) {
          const rivals = peers.filter((rival) => rival.threads === threads);
          const better = Math.min(...rivals.map(({ key }) => times[key].median));
          const mine = times[`ours, ${threads}`];
          figures.push({
            name: `${label}, ${threads} thread${threads > 1 ? "s" : ""} each`,
            value: better / mine.median,
            unit: "×",
            // With more threads only jax-js takes part: tfjs has none in Node.
            atLeast: task.startsWith("softmax") || k > 0 ? undefined : 4,
            spread: mine.spread,
          });
        }
      }
      const columns = ["what", "peer", "its form", "its time, ms", "ours, ms", "ratio"];
      return { figures, table: { columns, rows }, notes };
    } finally {
      for (const { peer } of peers) peer.end();
    }
  },
};
