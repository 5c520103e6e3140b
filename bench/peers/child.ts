import { makeProblem, type Peer, type PeerForm, type PeerTask, worstError } from "./peer.js";
import { reference } from "./reference.js";
import { installWebGpu } from "./web-gpu.js";
import { installWebWorker } from "./web-worker.js";

/** What the parent asks; see PeerProcess. */
export type Question =
  | { ask: "start"; name: "tfjs" | "jax-js"; backend: "wasm" | "webgpu"; threads: number }
  | { ask: "check" }
  | { ask: "load"; tokens: number; heads: number; headDim: number }
  | { ask: "choose"; task: PeerTask; tokens: number; headDim: number }
  | { ask: "run"; task: PeerTask; form: PeerForm };

let peer: Peer;

async function start(name: "tfjs" | "jax-js", backend: "wasm" | "webgpu", threads: number): Promise<Peer> {
  if (backend === "webgpu") installWebGpu();
  if (name === "tfjs") return (await import("./tfjs.js")).tfjsPeer(backend);
  if (backend === "wasm" && threads > 1) installWebWorker(threads);
  return (await import("./jax-js.js")).jaxPeer(backend);
}

async function timed(task: PeerTask, form: PeerForm): Promise<number> {
  const begin = performance.now();
  await peer.run(task, form);
  return performance.now() - begin;
}

/** The largest error of outputs and gradients against float64, over every form that makes several chunks here. */
async function check(): Promise<number> {
  const problem = makeProblem(256, 2, 64, 1);
  await peer.load(problem);
  let worst = 0;
  for (const kind of ["power", "softmax"] as const) {
    const wanted = reference(kind, problem);
    const task = kind === "power" ? "forward-backward" : "softmax-forward-backward";
    for (const candidate of peer.candidates(task).filter(({ chunkSize }) => chunkSize <= 128)) {
      await peer.run(task, candidate);
      const { output, gradients } = await peer.result();
      worst = Math.max(worst, worstError(output, wanted.output));
      for (const part of ["q", "k", "v", "logG"] as const) {
        if (kind === "softmax" && part === "logG") continue;
        worst = Math.max(worst, worstError(gradients![part], wanted.gradients[part]));
      }
    }
  }
  return worst;
}

/** The fastest form on one head: heads run one after another, so it is the fastest for any number of them. */
async function choose(task: PeerTask, tokens: number, headDim: number): Promise<PeerForm> {
  await peer.load(makeProblem(tokens, 1, headDim, 2));
  let best: { form: PeerForm; milliseconds: number } | undefined;
  for (const form of peer.candidates(task)) {
    const first = await timed(task, form); // compiles
    if (best && first > 4 * best.milliseconds + 1000) continue; // compiling takes less than a second
    let milliseconds = await timed(task, form);
    // A second look, unless the first already settles it.
    if (!best || milliseconds < 2 * best.milliseconds) milliseconds = Math.min(milliseconds, await timed(task, form));
    if (!best || milliseconds < best.milliseconds) best = { form, milliseconds };
  }
  return best!.form;
}

async function answer(question: Question): Promise<unknown> {
  switch (question.ask) {
    case "start":
      peer = await start(question.name, question.backend, question.threads);
      return { name: peer.name, version: peer.version, threads: peer.threads };
    case "check":
      return check();
    case "load":
      return peer.load(makeProblem(question.tokens, question.heads, question.headDim, 2));
    case "choose":
      return choose(question.task, question.tokens, question.headDim);
    case "run":
      return timed(question.task, question.form);
  }
}

process.on("message", (question: Question) => {
  answer(question).then(
    (value) => process.send!({ value }),
    (error) => process.send!({ error: String(error?.stack ?? error) }),
  );
});
