import * as tf from "@tensorflow/tfjs";
import { getThreadsCount, version_wasm } from "@tensorflow/tfjs-backend-wasm";
import { byHead, type Gradients, joinHeads, type Peer, type PeerForm, type PeerTask, type Problem } from "./peer.js";

export type Matrix = tf.Tensor2D;

/**
 * a·b with the gradients arranged so that every product is [m, k]·[k, n] without a transposed operand: the backend runs
 * those through XNNPACK, and transposed or batched products through a plain loop that is ten times slower. The
 * transposes are made on the smaller operand.
 */
export const product = tf.customGrad((a, b, save) => {
  (save as (tensors: tf.Tensor[]) => void)([a as Matrix, b as Matrix]);
  return {
    value: tf.matMul(a as Matrix, b as Matrix),
    gradFunc: (dy: tf.Tensor, saved: tf.Tensor[]) => {
      const [x, y] = saved as Matrix[];
      const dX = tf.matMul(dy as Matrix, tf.transpose(y));
      const dY =
        x.size <= dy.size
          ? tf.matMul(tf.transpose(x), dy as Matrix)
          : tf.transpose(tf.matMul(tf.transpose(dy as Matrix), x));
      return [dX, dY];
    },
  };
}) as (a: tf.Tensor, b: tf.Tensor) => Matrix;

/** Rows of x that are multiplied with each other at once in the "blocks" expansion. */
const BLOCK = 8;

/** All pairs of x's entries along `axis` (0: [d, C] to [d·d, C]; 1: [C, d] to [C, d·d]). */
function allPairs(x: Matrix, axis: 0 | 1): Matrix {
  const [m, n] = x.shape;
  if (axis === 0) return tf.reshape(tf.mul(tf.reshape(x, [m, 1, n]), tf.reshape(x, [1, m, n])), [m * m, n]);
  return tf.reshape(tf.mul(tf.reshape(x, [m, n, 1]), tf.reshape(x, [m, 1, n])), [m, n * n]);
}

/**
 * Pairs of a block of entries with itself and all later ones, block by block: little more than half of all pairs.
 * Those with a later block stand for two, which the `weighted` side counts.
 */
function blockPairs(x: Matrix, axis: 0 | 1, weighted: boolean): Matrix {
  const d = x.shape[axis];
  const blocks = tf.split(x, d / BLOCK, axis);
  const heavy = weighted ? tf.split(tf.mul(x, 2), d / BLOCK, axis) : blocks;
  const products = blocks.map((block, b) => {
    const rest = b + 1 < blocks.length ? tf.concat([block, ...heavy.slice(b + 1)], axis) : block;
    const [m, n] = rest.shape as [number, number];
    if (axis === 0) {
      return tf.reshape(tf.mul(tf.reshape(block, [BLOCK, 1, n]), tf.reshape(rest, [1, m, n])), [BLOCK * m, n]);
    }
    return tf.reshape(tf.mul(tf.reshape(block, [m, BLOCK, 1]), tf.reshape(rest, [m, 1, n])), [m, BLOCK * n]);
  });
  return tf.concat(products, axis) as Matrix;
}

function expand(x: Matrix, axis: 0 | 1, expansion: string, weighted: boolean): Matrix {
  return expansion === "blocks" ? blockPairs(x, axis, weighted) : allPairs(x, axis);
}

/** One head: q, k, v are [T, d], logG [T]. The key sum rides as a last column of ones on v. */
function powerHead(q: Matrix, k: Matrix, v: Matrix, logG: tf.Tensor1D, form: PeerForm): Matrix {
  const [tokens, d] = q.shape;
  const c = Math.min(form.chunkSize, tokens);
  const scaled = tf.mul(q, 1 / Math.sqrt(d)) as Matrix;
  const values = tf.concat([v, tf.ones([tokens, 1])], 1) as Matrix;
  const upper = tf.linalg.bandPart(tf.ones([c, c]), 0, -1);
  const later = tf.mul(tf.sub(upper, tf.eye(c)), -1e30) as Matrix; // on j > i, before the exponential
  const gates = product(tf.reshape(logG, [tokens / c, c]), upper);
  // Splits, not slices: the gradient of a split is one concatenation, of each slice a padded copy of the whole.
  // (A split into one piece has no working gradient.)
  const chunks = tokens / c;
  const pieces = (x: tf.Tensor, axis: number) => (chunks === 1 ? [x] : tf.split(x, chunks, axis));
  const queries = pieces(scaled, 0);
  const keys = pieces(tf.transpose(k), 1);
  const valueChunks = pieces(values, 0);
  const rows = pieces(gates, 0);
  const outputs: Matrix[] = [];
  let state: Matrix | undefined;
  for (let chunk = 0; chunk < chunks; chunk++) {
    const [qc, kc, vc, row] = [queries[chunk], keys[chunk], valueChunks[chunk], rows[chunk]] as Matrix[];
    const column = tf.reshape(row, [c, 1]);
    const end = tf.slice(row, [0, c - 1], [1, 1]);
    const decay = tf.exp(tf.add(tf.sub(column, row), later));
    let y: tf.Tensor = product(tf.mul(tf.square(product(qc, kc)), decay), vc);
    if (state) y = tf.add(y, tf.mul(tf.exp(column), product(expand(qc, 1, form.expansion, false), state)));
    const [sums, sum] = tf.split(y as Matrix, [d, 1], 1);
    outputs.push(tf.div(sums, sum));
    if (chunk + 1 === chunks) break; // nothing reads the last state
    const added = product(expand(kc, 0, form.expansion, true), tf.mul(vc, tf.exp(tf.sub(end, column))));
    state = state ? (tf.add(tf.mul(state, tf.exp(end)), added) as Matrix) : added;
  }
  return tf.concat(outputs, 0) as Matrix;
}

/** Causal softmax attention in blocks of queries, each against the keys up to its end. */
export function softmaxHead(q: Matrix, k: Matrix, v: Matrix, _logG: tf.Tensor1D, form: PeerForm): Matrix {
  const [tokens, d] = q.shape;
  const c = Math.min(form.chunkSize, tokens);
  const scaled = tf.mul(q, 1 / Math.sqrt(d)) as Matrix;
  const columns = tf.transpose(k);
  const upper = tf.linalg.bandPart(tf.ones([c, c]), 0, -1);
  const later = tf.mul(tf.sub(upper, tf.eye(c)), -1e30);
  const outputs: Matrix[] = [];
  for (let end = c; end <= tokens; end += c) {
    const mask = tf.pad(later, [
      [0, 0],
      [end - c, 0],
    ]);
    const scores = product(tf.slice(scaled, [end - c, 0], [c, d]), tf.slice(columns, [0, 0], [d, end]));
    outputs.push(product(tf.softmax(tf.add(scores, mask)), tf.slice(v, [0, 0], [end, d])));
  }
  return tf.concat(outputs, 0) as Matrix;
}

interface Head {
  inputs: [Matrix, Matrix, Matrix, tf.Tensor1D];
  upstream: Matrix;
}

/**
 * The peer on tfjs-wasm: SIMD, one thread (its flags turn its threads off in Node); or on its WebGPU backend, where
 * products are its own kernels, in f32. Heads run one after another.
 */
export async function tfjsPeer(backend: "wasm" | "webgpu"): Promise<Peer> {
  tf.env().set("PROD", true);
  if (backend === "webgpu") {
    await import("@tensorflow/tfjs-backend-webgpu");
    tf.env().set("WEBGPU_CPU_FORWARD", false);
  }
  if (!(await tf.setBackend(backend))) throw new Error(`tfjs: its ${backend} backend does not start here`);
  let heads: Head[] = [];
  let tokens = 0;
  let outputs: tf.Tensor[] = [];
  let gradients: tf.Tensor[][] = [];
  /** A GPU works in order: when a value of the last tensor can be read, all are made. */
  const finish = async () => {
    const last = gradients.at(-1)?.[0] ?? outputs.at(-1)!;
    if (backend === "webgpu") await tf.tidy(() => tf.slice(last, [0, 0], [1, 1])).data();
  };
  const clear = () => {
    tf.dispose([outputs, gradients]);
    outputs = [];
    gradients = [];
  };
  const gather = async (tensors: tf.Tensor[]) =>
    joinHeads(await Promise.all(tensors.map((tensor) => tensor.data())), tokens);
  return {
    name: `tfjs-${backend}`,
    version: version_wasm, // all of its packages have one version
    threads: backend === "wasm" ? getThreadsCount() : 1,
    candidates: (task) =>
      (task.startsWith("softmax") ? [""] : ["blocks", "outer"]).flatMap((expansion) =>
        [64, 128, 256, 512].map((chunkSize) => ({ chunkSize, expansion })),
      ),
    async load(problem: Problem) {
      clear();
      tf.dispose(heads.map(({ inputs, upstream }) => [...inputs, upstream]));
      tokens = problem.tokens;
      const { headDim: d } = problem;
      const split = (values: Float32Array, dim: number) => {
        const all = byHead(values, tokens, problem.heads);
        return Array.from({ length: problem.heads }, (_, h) => all.slice(h * tokens * dim, (h + 1) * tokens * dim));
      };
      const [q, k, v, upstream] = [problem.q, problem.k, problem.v, problem.upstream].map((x) =>
        split(x, d).map((values) => tf.tensor2d(values, [tokens, d])),
      );
      const logG = split(problem.logG, 1).map((values) => tf.tensor1d(values));
      heads = q.map((_, h) => ({ inputs: [q[h], k[h], v[h], logG[h]], upstream: upstream[h] }));
    },
    async run(task: PeerTask, form: PeerForm) {
      clear();
      const softmax = task.startsWith("softmax");
      const attend = softmax ? softmaxHead : powerHead;
      const backward = task.endsWith("backward");
      for (const { inputs, upstream } of heads) {
        tf.tidy(() => {
          if (!backward) {
            outputs.push(tf.keep(attend(...inputs, form)));
            return;
          }
          let output: tf.Tensor | undefined;
          const weighted = (...x: tf.Tensor[]) => {
            const [q, k, v, logG] = x as [Matrix, Matrix, Matrix, tf.Tensor1D];
            output = tf.keep(attend(q, k, v, logG ?? inputs[3], form));
            return tf.sum(tf.mul(output, upstream)) as tf.Scalar;
          };
          const made = tf.grads(weighted)(softmax ? inputs.slice(0, 3) : inputs);
          gradients.push(made.map((gradient) => tf.keep(gradient)));
          outputs.push(output!);
        });
      }
      await finish();
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
