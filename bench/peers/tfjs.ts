import * as tf from "@tensorflow/tfjs";
import { getThreadsCount, version_wasm } from "@tensorflow/tfjs-backend-wasm";
import { byHead, type Gradients, joinHeads, type Peer, type PeerForm, type PeerTask, type Problem } from "./peer.js";

type Matrix = tf.Tensor2D;

/**
 * a·b with the gradients arranged so that every product is [m, k]·[k, n] without a transposed operand: the backend runs
 * those through XNNPACK, and transposed or batched products through a plain loop that is ten times slower. The
 * transposes are made on the smaller operand.
 */
const product = tf.customGrad((a, b, save) => {
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

/** Monomials down the rows: x is [d, C], the result [features, C]. `weighted` puts the multiplicities on this side. */
function expandRows(x: Matrix, expansion: string, weighted: boolean): Matrix {
  const [d, c] = x.shape;
  if (expansion === "outer") return tf.reshape(tf.mul(tf.reshape(x, [d, 1, c]), tf.reshape(x, [1, d, c])), [d * d, c]);
  // The pairs (i, i+s mod d) for s = 0 … d/2: each product once with weight 2, squares and s = d/2 with weight 1.
  const twice = tf.concat([x, x], 0);
  const half = d / 2;
  const shifted = Array.from({ length: half + 1 }, (_, s) => tf.slice(twice, [s, 0], [d, c]));
  const heavy = weighted ? tf.mul(x, 2) : x;
  const plain = Array.from({ length: half + 1 }, (_, s) => (s === 0 || s === half ? x : heavy));
  return tf.mul(tf.concat(shifted, 0), tf.concat(plain, 0)) as Matrix;
}

/** Monomials along the columns: x is [C, d], the result [C, features], unweighted. */
function expandColumns(x: Matrix, expansion: string): Matrix {
  const [c, d] = x.shape;
  if (expansion === "outer") return tf.reshape(tf.mul(tf.reshape(x, [c, d, 1]), tf.reshape(x, [c, 1, d])), [c, d * d]);
  const twice = tf.concat([x, x], 1);
  const shifted = Array.from({ length: d / 2 + 1 }, (_, s) => tf.slice(twice, [0, s], [c, d]));
  const plain = shifted.map(() => x);
  return tf.mul(tf.concat(shifted, 1), tf.concat(plain, 1)) as Matrix;
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
    if (state) y = tf.add(y, tf.mul(tf.exp(column), product(expandColumns(qc, form.expansion), state)));
    const [sums, sum] = tf.split(y as Matrix, [d, 1], 1);
    outputs.push(tf.div(sums, sum));
    if (chunk + 1 === chunks) break; // nothing reads the last state
    const added = product(expandRows(kc, form.expansion, true), tf.mul(vc, tf.exp(tf.sub(end, column))));
    state = state ? (tf.add(tf.mul(state, tf.exp(end)), added) as Matrix) : added;
  }
  return tf.concat(outputs, 0) as Matrix;
}

/** Causal softmax attention in blocks of queries, each against the keys up to its end. */
function softmaxHead(q: Matrix, k: Matrix, v: Matrix, _logG: tf.Tensor1D, form: PeerForm): Matrix {
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

/** The peer on tfjs-wasm: SIMD, one thread (its flags turn its threads off in Node). Heads run one after another. */
export async function tfjsPeer(): Promise<Peer> {
  tf.env().set("PROD", true);
  await tf.setBackend("wasm");
  let heads: Head[] = [];
  let tokens = 0;
  let outputs: tf.Tensor[] = [];
  let gradients: tf.Tensor[][] = [];
  const clear = () => {
    tf.dispose([outputs, gradients]);
    outputs = [];
    gradients = [];
  };
  const gather = async (tensors: tf.Tensor[]) =>
    joinHeads(await Promise.all(tensors.map((tensor) => tensor.data())), tokens);
  return {
    name: "tfjs-wasm",
    version: version_wasm,
    threads: getThreadsCount(),
    candidates: ["shift", "outer"].flatMap((expansion) =>
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
