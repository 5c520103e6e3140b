import { blockUntilReady, init, type Array as JaxArray, jit, nn, numpy as np, valueAndGrad } from "@jax-js/jax";
import type { GPTConfig } from "../../src/models/index.js";
import { type GPTPeer, LEARNING_RATE, RATES, type Weight } from "./gpt.js";
import { softmaxHead } from "./jax-js.js";

// Arrays are counted: a use consumes its operand unless it says `.ref`.

type Weights = Record<string, JaxArray>;

function layerNorm(x: JaxArray, weight: JaxArray): JaxArray {
  const centered = x.ref.sub(np.mean(x, 1, { keepdims: true }));
  const variance = np.mean(np.square(centered.ref), 1, { keepdims: true });
  return centered.div(np.sqrt(variance.add(1e-5))).mul(weight);
}

function lossOf(config: GPTConfig, w: Weights, inputs: JaxArray, targets: JaxArray): JaxArray {
  const { nLayer, nHead, headSize } = config;
  let x = np.matmul(inputs, w["tokens.weight"].ref).add(w["positions"]);
  for (let n = 0; n < nLayer; n++) {
    const at = (name: string) => w[`blocks.${n}.${name}.weight`];
    const project = np.matmul(layerNorm(x.ref, at("norm1")), at("attention.project"));
    const head = (k: number) => project.ref.slice([], [k * headSize, (k + 1) * headSize]);
    const attended = Array.from({ length: nHead }, (_, h) =>
      softmaxHead({ chunkSize: 256, expansion: "" }, head(h), head(nHead + h), head(2 * nHead + h)),
    );
    project.dispose();
    x = x.add(np.matmul(np.concatenate(attended, 1), at("attention.out")));
    const up = nn.gelu(np.matmul(layerNorm(x.ref, at("norm2")), at("mlp.up")), { approximate: true });
    x = x.add(np.matmul(up, at("mlp.down")));
  }
  const logits = np.matmul(layerNorm(x, w["norm.weight"]), np.matrixTranspose(w["tokens.weight"]));
  const picked = np.sum(logits.ref.mul(targets), 1);
  return np.mean(nn.logsumexp(logits, 1).sub(picked));
}

/** Forward, backward, clipping and AdamW of a GPT in jax-js operations, compiled by its `jit` as one program. */
export async function gptJax(): Promise<GPTPeer> {
  await init("wasm");
  let config: GPTConfig;
  let weights: Weights = {};
  let means: Weights = {};
  let squares: Weights = {};
  let inputs: JaxArray;
  let targets: JaxArray;
  let done = 0;
  const gradients = jit((w: Weights, x: JaxArray, y: JaxArray) =>
    valueAndGrad((v: Weights) => lossOf(config, v, x, y))(w),
  ) as unknown as (w: Weights, x: JaxArray, y: JaxArray) => [JaxArray, Weights];
  const refs = (w: Weights): Weights => Object.fromEntries(Object.entries(w).map(([name, a]) => [name, a.ref]));
  const each = (w: Weights, fn: (a: JaxArray, name: string) => JaxArray): Weights =>
    Object.fromEntries(Object.entries(w).map(([name, a]) => [name, fn(a, name)]));
  // The corrections of the step come as arrays, or every step would be compiled anew.
  const update = jit((w: Weights, m: Weights, v: Weights, g: Weights, c1: JaxArray, c2: JaxArray) => {
    const norm = Object.values(g)
      .map((a) => np.sum(np.square(a.ref)))
      .reduce((a, b) => a.add(b));
    const scale = np.minimum(np.array(RATES.clip).div(np.sqrt(norm)), 1);
    const clipped = each(g, (a) => a.mul(scale.ref));
    const mean = each(m, (a, name) => a.mul(RATES.beta1).add(clipped[name].ref.mul(1 - RATES.beta1)));
    const square = each(v, (a, name) => a.mul(RATES.beta2).add(np.square(clipped[name]).mul(1 - RATES.beta2)));
    const next = each(w, (a, name) => {
      const root = np.sqrt(square[name].ref.div(c2.ref)).add(RATES.epsilon);
      const move = mean[name].ref.div(c1.ref).div(root);
      const keep = 1 - LEARNING_RATE * (a.shape.length >= 2 ? RATES.weightDecay : 0);
      return a.mul(keep).sub(move.mul(LEARNING_RATE));
    });
    for (const a of [scale, c1, c2]) a.dispose();
    return [next, mean, square];
  }) as unknown as (...parts: [Weights, Weights, Weights, Weights, JaxArray, JaxArray]) => [Weights, Weights, Weights];
  return {
    name: "jax-js",
    threads: typeof Worker === "undefined" ? 1 : navigator.hardwareConcurrency,
    async load(shape: GPTConfig, values: Map<string, Weight>, text: Int32Array) {
      config = shape;
      for (const [name, w] of values) {
        weights[name] = np.array(w.values).reshape(w.shape);
        means[name] = np.zeros(w.shape);
        squares[name] = np.zeros(w.shape);
      }
      const oneHot = (ids: Int32Array) => {
        const rows = new Float32Array(ids.length * config.vocabSize);
        for (const [k, id] of ids.entries()) rows[k * config.vocabSize + id] = 1;
        return np.array(rows).reshape([ids.length, config.vocabSize]);
      };
      inputs = oneHot(text.subarray(0, -1));
      targets = oneHot(text.subarray(1));
    },
    async step() {
      const [loss, g] = gradients(refs(weights), inputs.ref, targets.ref);
      done++;
      const corrections = [1 - RATES.beta1 ** done, 1 - RATES.beta2 ** done].map((c) => np.array(c));
      [weights, means, squares] = update(weights, means, squares, g, corrections[0], corrections[1]);
      await blockUntilReady(weights);
      return (await loss.data())[0];
    },
  };
}
