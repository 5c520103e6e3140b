import { getDevice, logSigmoid, powerFull, Scope, type Tensor, tensor } from "../src/index.js";
import { AdamW, crossEntropy, Embedding, Linear, Module, type ModuleOptions } from "../src/nn/index.js";

class Attention extends Module {
  constructor(
    readonly heads: number,
    readonly size: number,
    options: ModuleOptions,
  ) {
    super();
    this.project = new Linear(heads * size, 3 * heads * size + heads, options); // q, k, v and a gate for each head
  }
  readonly project: Linear;
  forward(x: Tensor): Tensor {
    const width = this.heads * this.size;
    const [q, k, v, gate] = this.project.forward(x).split([width, width, width, this.heads]);
    const [qs, ks, vs] = [q, k, v].map((t) => t.reshape([x.shape[0], x.shape[1], this.heads, this.size]));
    return powerFull(qs, ks, vs, { logG: logSigmoid(gate.add(6.9)), degree: 2 }).reshape(x.shape);
  }
}

class Model extends Module {
  readonly tokens: Embedding;
  readonly attention: Attention;
  readonly out: Linear;
  constructor(vocabulary: number, options: ModuleOptions) {
    super();
    this.tokens = new Embedding(vocabulary, 32, { ...options, deviation: 0.3 });
    this.attention = new Attention(2, 16, options);
    this.out = new Linear(32, vocabulary, options);
  }
  forward(ids: Tensor): Tensor {
    const x = this.tokens.forward(ids);
    return this.out.forward(x.add(this.attention.forward(x)));
  }
}

const device = await getDevice();
const model = new Model(8, { device });
const optimizer = new AdamW(model.parameters(), { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1 });
const text = Array.from({ length: 65 }, (_, t) => (t * t) % 8);
const ids = tensor([text.slice(0, 64)], undefined, { device, dtype: "i32" });
const targets = tensor([text.slice(1)], undefined, { device, dtype: "i32" });
for (let step = 0; step <= 100; step++) {
  using _ = new Scope(); // what the step makes is freed when it ends; parameters and their gradients are not
  const loss = crossEntropy(model.forward(ids), targets);
  loss.backward();
  optimizer.update(0.01, optimizer.squaredNorm());
  model.clearGrad();
  if (step % 50 === 0) console.log(`step ${step}: loss ${(await loss.item()).toFixed(3)}`);
}
