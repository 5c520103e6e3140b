import * as tf from "@tensorflow/tfjs";
import { getThreadsCount } from "@tensorflow/tfjs-backend-wasm";
import type { GPTConfig } from "../../src/models/index.js";
import { type GPTPeer, LEARNING_RATE, RATES, type Weight } from "./gpt.js";
import { type Matrix, product, softmaxHead } from "./tfjs.js";

const NO_GATES = null as unknown as tf.Tensor1D;

function layerNorm(x: Matrix, weight: tf.Tensor): Matrix {
  const centered = tf.sub(x, tf.mean(x, 1, true));
  const variance = tf.mean(tf.square(centered), 1, true);
  return tf.mul(tf.mul(centered, tf.rsqrt(tf.add(variance, 1e-5))), weight) as Matrix;
}

function gelu(x: Matrix): Matrix {
  const inner = tf.mul(x, tf.add(tf.mul(tf.square(x), 0.044715 * Math.sqrt(2 / Math.PI)), Math.sqrt(2 / Math.PI)));
  return tf.mul(tf.mul(x, 0.5), tf.add(tf.tanh(inner), 1)) as Matrix;
}

/** Forward, backward, clipping and AdamW of a GPT in tfjs operations; attention in blocks of queries, head by head. */
export async function gptTfjs(): Promise<GPTPeer> {
  tf.env().set("PROD", true);
  await tf.setBackend("wasm");
  let config: GPTConfig;
  let names: string[] = [];
  let weights: tf.Variable[] = [];
  let moments: { mean: tf.Variable; square: tf.Variable }[] = [];
  let inputs: Matrix;
  let targets: Matrix;
  let done = 0;

  const loss = (): tf.Scalar => {
    const at = (name: string) => weights[names.indexOf(name)] as unknown as Matrix;
    let x = tf.add(product(inputs, at("tokens.weight")), at("positions")) as Matrix;
    for (let n = 0; n < config.nLayer; n++) {
      const block = `blocks.${n}`;
      const project = product(layerNorm(x, at(`${block}.norm1.weight`)), at(`${block}.attention.project.weight`));
      const heads = tf.split(project, 3 * config.nHead, 1) as Matrix[];
      const attended = Array.from({ length: config.nHead }, (_, h) =>
        softmaxHead(heads[h], heads[config.nHead + h], heads[2 * config.nHead + h], NO_GATES, {
          chunkSize: 256,
          expansion: "",
        }),
      );
      x = tf.add(x, product(tf.concat(attended, 1), at(`${block}.attention.out.weight`))) as Matrix;
      const up = gelu(product(layerNorm(x, at(`${block}.norm2.weight`)), at(`${block}.mlp.up.weight`)));
      x = tf.add(x, product(up, at(`${block}.mlp.down.weight`))) as Matrix;
    }
    const logits = product(layerNorm(x, at("norm.weight")), tf.transpose(at("tokens.weight")));
    const picked = tf.sum(tf.mul(logits, targets), 1);
    return tf.mean(tf.sub(tf.logSumExp(logits, 1), picked)) as tf.Scalar;
  };

  const update = (gradients: tf.Tensor[]) => {
    const norm = tf.sqrt(tf.addN(gradients.map((g) => tf.sum(tf.square(g)))));
    const scale = tf.minimum(tf.div(RATES.clip, norm), 1);
    done++;
    for (const [k, weight] of weights.entries()) {
      const g = tf.mul(gradients[k], scale);
      const { mean, square } = moments[k];
      mean.assign(tf.add(tf.mul(mean, RATES.beta1), tf.mul(g, 1 - RATES.beta1)));
      square.assign(tf.add(tf.mul(square, RATES.beta2), tf.mul(tf.square(g), 1 - RATES.beta2)));
      const root = tf.add(tf.sqrt(tf.div(square, 1 - RATES.beta2 ** done)), RATES.epsilon);
      const move = tf.div(tf.div(mean, 1 - RATES.beta1 ** done), root);
      const decay = weight.rank >= 2 ? RATES.weightDecay : 0;
      weight.assign(tf.sub(tf.mul(weight, 1 - LEARNING_RATE * decay), tf.mul(move, LEARNING_RATE)));
    }
  };

  return {
    name: "tfjs-wasm",
    threads: getThreadsCount() > 0 ? getThreadsCount() : 1,
    async load(shape: GPTConfig, values: Map<string, Weight>, text: Int32Array) {
      config = shape;
      names = [...values.keys()];
      weights = [...values.values()].map((w) => tf.variable(tf.tensor(w.values, w.shape)));
      moments = weights.map((w) => ({
        mean: tf.variable(tf.zerosLike(w), false),
        square: tf.variable(tf.zerosLike(w), false),
      }));
      const oneHot = (ids: Int32Array) => tf.cast(tf.oneHot(tf.tensor1d(ids, "int32"), config.vocabSize), "float32");
      inputs = oneHot(text.subarray(0, -1)) as Matrix;
      targets = oneHot(text.subarray(1)) as Matrix;
    },
    async step() {
      const value = tf.tidy(() => {
        const { value, grads } = tf.variableGrads(loss, weights);
        update(weights.map((w) => grads[w.name]));
        return value;
      });
      const [before] = await value.data();
      value.dispose();
      return before;
    },
  };
}
