import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { blockUntilReady, defaultDevice, init, type Array as JaxArray, jit, numpy as np, tree, vjp } from "@jax-js/jax";
import { byHead, type Gradients, joinHeads, type Peer, type PeerForm, type PeerTask, type Problem } from "./peer.js";

// Arrays are counted: a use consumes its operand unless it says `.ref`.

/**
 * x·xᵀ of every row, flattened: [N, C, d] to [N, C, d·d]. The symmetric half (by shifts and a concatenation) has half the
 * products and was measured slower here, forward and backward, compiled or not.
 */
function expand(x: JaxArray): JaxArray {
  const [n, c, d] = x.shape;
  return x.ref
    .reshape([n, c, d, 1])
    .mul(x.reshape([n, c, 1, d]))
    .reshape([n, c, d * d]);
}

/** exp(G_i − G_j) for j ≤ i, 0 above: [N, C] to [N, C, C]. */
function decayOf(gates: JaxArray): JaxArray {
  const [n, c] = gates.shape;
  const difference = gates.ref.reshape([n, c, 1]).sub(gates.reshape([n, 1, c]));
  return np.exp(np.where(np.tri(c, c, 0, { dtype: np.bool }), difference, -1e30));
}

/** One head: q, k, v are [T, d], logG [T]. All chunks at once, as batched products; states are joined by a product. */
function powerHead(form: PeerForm, q: JaxArray, k: JaxArray, v: JaxArray, logG: JaxArray): JaxArray {
  const [tokens, d] = q.shape;
  const c = Math.min(form.chunkSize, tokens);
  const n = tokens / c;
  const qc = q.reshape([n, c, d]).mul(1 / Math.sqrt(d));
  const kc = k.reshape([n, c, d]);
  // The key sum z is summed on its own: a column more than a multiple of 4 makes the products ten times slower.
  const vc = v.reshape([n, c, d]);
  const gates = np.matmul(logG.reshape([n, c]), np.triu(np.ones([c, c]))); // running sums inside each chunk
  const ends = gates.ref.slice([], [c - 1, c]); // [n, 1]
  const scores = np.matmul(qc.ref, np.matrixTranspose(kc.ref));
  const weights = np.square(scores).mul(decayOf(gates.ref));
  const toEnd = np.exp(ends.ref.sub(gates.ref)).reshape([n, c, 1]);
  const keyFeatures = expand(kc).mul(toEnd); // [n, c, D]
  const features = keyFeatures.shape[2];
  const sums = np.sum(keyFeatures.ref, 1); // [n, D]
  const states = np.matmul(np.matrixTranspose(keyFeatures), vc.ref); // [n, D, d]
  // entering_m = Σ_{l<m} exp(E_{m−1} − E_l) state_l, E the running sum of the chunks' ends.
  const after = np.matmul(np.tri(n, n), ends.ref).reshape([1, n]);
  const before = np.matmul(np.tri(n, n, -1), ends).reshape([n, 1]);
  const carry = np.exp(np.where(np.tri(n, n, -1, { dtype: np.bool }), before.sub(after), -1e30));
  const entering = np.matmul(carry.ref, states.reshape([n, features * d])).reshape([n, features, d]);
  const enteringSums = np.matmul(carry, sums).reshape([n, 1, features]);
  const fromStart = np.exp(gates).reshape([n, c, 1]);
  const queryFeatures = expand(qc).mul(fromStart);
  const total = np
    .sum(weights.ref, 2, { keepdims: true })
    .add(np.sum(queryFeatures.ref.mul(enteringSums), 2, { keepdims: true }));
  return np.matmul(weights, vc).add(np.matmul(queryFeatures, entering)).div(total).reshape([tokens, d]);
}

/** Causal softmax attention in blocks of queries, each against the keys up to its end. */
export function softmaxHead(form: PeerForm, q: JaxArray, k: JaxArray, v: JaxArray): JaxArray {
  const [tokens, d] = q.shape;
  const c = Math.min(form.chunkSize, tokens);
  const scaled = q.mul(1 / Math.sqrt(d));
  const outputs: JaxArray[] = [];
  for (let end = c; end <= tokens; end += c) {
    const scores = np.matmul(scaled.ref.slice([end - c, end]), np.matrixTranspose(k.ref.slice([0, end])));
    const masked = np.where(np.tri(c, end, end - c, { dtype: np.bool }), scores, -1e30);
    const top = np.max(masked.ref, 1, { keepdims: true });
    const w = np.exp(masked.sub(top));
    const sum = np.sum(w.ref, 1, { keepdims: true });
    outputs.push(np.matmul(w, v.ref.slice([0, end])).div(sum));
  }
  for (const x of [scaled, k, v]) x.dispose();
  return np.concatenate(outputs, 0);
}

function installedVersion(): string {
  const entry = fileURLToPath(import.meta.resolve("@jax-js/jax"));
  return JSON.parse(readFileSync(join(dirname(entry), "../package.json"), "utf8")).version;
}

/** The peer on a backend of jax-js, compiled with its `jit` where the form says so. Heads run one after another. */
export async function jaxPeer(backend: "wasm" | "webgpu"): Promise<Peer> {
  if (!(await init(backend)).includes(backend)) throw new Error(`jax-js: its ${backend} backend does not start here`);
  defaultDevice(backend);
  let heads: { inputs: JaxArray[]; upstream: JaxArray }[] = [];
  let tokens = 0;
  let outputs: JaxArray[] = [];
  let gradients: JaxArray[][] = [];
  const compiled = new Map<string, (...inputs: JaxArray[]) => JaxArray[]>();
  const clear = () => {
    tree.dispose(outputs);
    tree.dispose(gradients);
    outputs = [];
    gradients = [];
  };
  /** Forward: [output]; forward and backward, given the upstream gradient last: [output, dQ, dK, dV, (dLogG)]. */
  const program = (task: PeerTask, form: PeerForm) => {
    const softmax = task.startsWith("softmax");
    const attend = softmax
      ? (q: JaxArray, k: JaxArray, v: JaxArray) => softmaxHead(form, q, k, v)
      : (q: JaxArray, k: JaxArray, v: JaxArray, logG: JaxArray) => powerHead(form, q, k, v, logG);
    const call = (...inputs: JaxArray[]): JaxArray[] => {
      if (!task.endsWith("backward")) return [(attend as (...x: JaxArray[]) => JaxArray)(...inputs)];
      const upstream = inputs.at(-1)!;
      const [output, pull] = vjp(attend as (...x: JaxArray[]) => JaxArray, inputs.slice(0, -1));
      const made = pull(upstream) as JaxArray[];
      pull.dispose();
      return [output, ...made];
    };
    if (!form.expansion.endsWith("jit")) return call;
    const key = [task, form.chunkSize, form.expansion].join();
    if (!compiled.has(key)) compiled.set(key, jit(call) as typeof call);
    return compiled.get(key)!;
  };
  const gather = async (arrays: JaxArray[]) =>
    joinHeads(await Promise.all(arrays.map((array) => array.ref.data())), tokens);
  return {
    name: "jax-js",
    version: installedVersion(),
    threads: backend === "webgpu" || typeof Worker === "undefined" ? 1 : navigator.hardwareConcurrency,
    candidates: () =>
      ["outer jit", "outer"].flatMap((expansion) => [128, 256, 512].map((chunkSize) => ({ chunkSize, expansion }))),
    async load(problem: Problem) {
      clear();
      for (const { inputs, upstream } of heads) for (const x of [...inputs, upstream]) x.dispose();
      tokens = problem.tokens;
      const { headDim: d } = problem;
      const split = (values: Float32Array, dim: number) => {
        const all = byHead(values, tokens, problem.heads);
        return Array.from({ length: problem.heads }, (_, h) => {
          const head = np.array(all.slice(h * tokens * dim, (h + 1) * tokens * dim));
          return dim === 1 ? head : head.reshape([tokens, dim]);
        });
      };
      const [q, k, v, upstream] = [problem.q, problem.k, problem.v, problem.upstream].map((x) => split(x, d));
      const logG = split(problem.logG, 1);
      heads = q.map((_, h) => ({ inputs: [q[h], k[h], v[h], logG[h]], upstream: upstream[h] }));
      await blockUntilReady(heads);
    },
    async run(task: PeerTask, form: PeerForm) {
      clear();
      const call = program(task, form);
      const backward = task.endsWith("backward");
      for (const { inputs, upstream } of heads) {
        const used = task.startsWith("softmax") ? inputs.slice(0, 3) : inputs;
        const made = call(...used.map((x) => x.ref), ...(backward ? [upstream.ref] : []));
        await blockUntilReady(made);
        outputs.push(made[0]);
        if (backward) gradients.push(made.slice(1));
      }
    },
    async result() {
      const output = await gather(outputs);
      if (gradients.length === 0) return { output };
      const [q, k, v, logG] = await Promise.all(
        gradients[0].map((_, part) => gather(gradients.map((list) => list[part]))),
      );
      return { output, gradients: { q, k, v, logG: logG ?? new Float32Array() } satisfies Gradients };
    },
  };
}
