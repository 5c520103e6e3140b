import { type Context, type Figure, powerTask, type Question, softmaxTask } from "./context.js";
import { mainShape } from "./forward.js";
import { fastInputs } from "./gpu/inputs.js";
import { interleave, type Task } from "./measure.js";
import type { PeerForm, PeerTask } from "./peers/peer.js";
import { PeerProcess } from "./peers/process.js";

/** Beyond it a peer computes something else; float32 on a GPU may contract and reorder. */
const PEER_TOLERANCE = 1e-4;
/** What a peer has not done by then, compiling included, is left out, and the result says so. */
const PEER_SECONDS = { webgpu: 75, wasm: 240 };
const GROUPS = ["forward", "backward", "forward and backward"];

type Kind = "power" | "softmax";

/** Milliseconds of the forward pass, and of forward and backward together. */
interface Times {
  forward: number;
  both: number;
  spread: number;
}

/** A call and the wait for its end. */
function synced(device: { sync(): Promise<void> }, run: () => undefined): Task {
  return async () => {
    run();
    await device.sync();
    return undefined;
  };
}

/** The inputs a user of the device would have: half precision on a GPU, f32 on a CPU. */
const dtypeOf = ({ kind }: Context) => (kind === "webgpu" ? "bf16" : "f32");

async function inputsOf(context: Context, tokens: number) {
  return fastInputs(await context.main(), mainShape(tokens), { dtype: dtypeOf(context), requiresGrad: true });
}

async function timeOurs(context: Context, tokens: number): Promise<Record<Kind, Times>> {
  const device = await context.main();
  const inputs = await inputsOf(context, tokens);
  const choice = { degree: 2, chunkSize: context.chunkSize };
  const times = await interleave(
    {
      power: synced(device, powerTask(inputs, choice, false)),
      powerBoth: synced(device, powerTask(inputs, choice, true)),
      softmax: synced(device, softmaxTask(inputs, false)),
      softmaxBoth: synced(device, softmaxTask(inputs, true)),
    },
    context.quick ? { warmUp: 1, rounds: 2 } : { warmUp: 2, rounds: context.kind === "webgpu" ? 20 : 5 },
  );
  inputs.dispose();
  const pair = (forward: (typeof times)["power"], both: (typeof times)["power"]) => ({
    forward: forward.median,
    both: both.median,
    spread: both.spread,
  });
  return { power: pair(times.power, times.powerBoth), softmax: pair(times.softmax, times.softmaxBoth) };
}

/** The longest of 1,024, 2,048 … 16,384 tokens at which power attention takes less than a tenth of a second. */
async function gpuTokens(context: Context): Promise<number> {
  if (context.quick) return 128;
  const device = await context.gpu();
  let tokens = 1024;
  for (; tokens < 16384; tokens *= 2) {
    const inputs = await inputsOf(context, tokens);
    const task = synced(device, powerTask(inputs, { degree: 2, chunkSize: context.chunkSize }, true));
    const { time } = await interleave({ time: task }, { warmUp: 2, rounds: 3 });
    inputs.dispose();
    if (time.median > 50) break;
  }
  return tokens;
}

async function timePeer(peer: PeerProcess, kind: Kind, tokens: number, quick: boolean): Promise<[Times, PeerForm]> {
  const { heads, headDim } = mainShape(tokens);
  const prefix = kind === "softmax" ? "softmax-" : "";
  const form = await peer.choose(`${prefix}forward-backward` as PeerTask, tokens, headDim);
  await peer.load(tokens, heads, headDim);
  const times = await interleave(
    {
      forward: () => peer.run(`${prefix}forward` as PeerTask, form),
      both: () => peer.run(`${prefix}forward-backward` as PeerTask, form),
    },
    { warmUp: 1, rounds: quick ? 1 : 3 },
  );
  return [{ forward: times.forward.median, both: times.both.median, spread: times.both.spread }, form];
}

function before<T>(deadline: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout;
  const limit = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error("took too long")), deadline - performance.now());
  });
  return Promise.race([work, limit]).finally(() => clearTimeout(timer));
}

export const singleProblem: Question = {
  name: "single-problem",
  question: "How long does one problem take, beside softmax attention and other libraries? (8 heads, d=64, p=2, gated)",
  target: "reported, not a target",
  on: ["wasm", "webgpu"],
  async run(context) {
    const { kind, quick, threads } = context;
    const tokens = kind === "webgpu" ? await gpuTokens(context) : quick ? 512 : 4096;
    const figures: Figure[] = [];
    const series: Record<string, (number | null)[]> = {};
    const rows: (number | string)[][] = [];
    const add = (name: string, { forward, both, spread }: Times, form: string) => {
      const values = [forward, both - forward, both];
      series[name] = values;
      rows.push([name, form, ...values]);
      figures.push(
        { name: `${name}, forward`, value: forward, unit: "ms" },
        { name: `${name}, forward and backward`, value: both, unit: "ms", spread },
      );
    };
    context.progress(`  T=${tokens}`);
    const own = await timeOurs(context, tokens);
    const dtype = dtypeOf(context);
    add(`power attention, ${dtype}`, own.power, "");
    add(`softmax attention, ${dtype}`, own.softmax, "");
    const notes: Record<string, string | number> = { tokens, threads };
    // The GPU is one: what we hold of it would be missing to a peer.
    if (kind === "webgpu") context.releaseGpus();
    for (const name of ["jax-js", "tfjs"] as const) {
      context.progress(`  ${name}`);
      let peer: PeerProcess | undefined;
      try {
        const deadline = performance.now() + 1000 * PEER_SECONDS[kind];
        peer = await PeerProcess.start(name, threads, kind);
        notes[name] = peer.version;
        const value = await before(deadline, peer.check());
        figures.push({ name: `${name}: error`, value, unit: "", atMost: PEER_TOLERANCE, correctness: true });
        for (const attention of ["power", "softmax"] as const) {
          const [times, form] = await before(deadline, timePeer(peer, attention, tokens, quick));
          add(`${name}, ${attention}, f32`, times, `${form.expansion} ${form.chunkSize}`.trim());
        }
      } catch (error) {
        notes[`${name} left out`] = (error instanceof Error ? error.message : String(error)).split("\n")[0];
        context.progress(`  ${name}: ${notes[`${name} left out`]}`);
      } finally {
        peer?.end();
      }
    }
    return {
      figures,
      table: { columns: ["what", "its form", ...GROUPS.map((group) => `${group}, ms`)], rows },
      notes,
      plot: {
        kind: "bars",
        title: `One problem: T=${tokens.toLocaleString("en")}, 8 heads, d=64, p=2`,
        x: "",
        y: "ms",
        groups: GROUPS,
        series,
        logY: true,
      },
    };
  },
};
