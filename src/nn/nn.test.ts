import { expect, test } from "vitest";
import { useDevices, worst } from "../../test/compare-devices.js";
import type { Device } from "../devices/device.js";
import { ones, randn, tensor } from "../tensor/create.js";
import { Generator } from "../tensor/random.js";
import { noGrad } from "../tensor/tape.js";
import { fromValues, type Tensor } from "../tensor/tensor.js";
import {
  Block,
  CausalSelfAttention,
  Embedding,
  LayerNorm,
  Linear,
  MLP,
  Module,
  type ModuleOptions,
  parameter,
  RMSNorm,
  RotaryEmbedding,
  recompute,
} from "./index.js";

const devices = useDevices();

type Forward = { forward(x: Tensor): Tensor };
type Make = (options: ModuleOptions) => Module & Forward;

/** Parameters away from their symmetric starts, so that no gradient is 0 by chance. */
function stir(module: Module): void {
  const generator = new Generator(11);
  for (const tensor of module.parameters().values()) {
    const values = Float32Array.from({ length: tensor.size }, () => 0.4 * generator.normal());
    tensor.device.write(tensor.storage, values);
  }
}

/** The output, and the gradients of the input and of all parameters for a random upstream gradient. */
async function evaluate(make: Make, shape: number[], device: Device): Promise<Record<string, number[]>> {
  const module = make({ device, generator: new Generator(3) });
  stir(module);
  const x = randn(shape, { device, seed: 5, requiresGrad: true });
  const y = module.forward(x);
  const out: Record<string, number[]> = { output: [...(await y.data())] };
  y.backward(randn(y.shape, { device, seed: 6 }));
  for (const [name, { grad }] of [["x", x] as const, ...module.parameters()])
    out[`d(${name})`] = [...(await grad!.data())];
  return out;
}

const attention = (rest: object) => (options: ModuleOptions) =>
  new CausalSelfAttention(
    { nEmbd: 8, nHead: 2, headSize: 4, bias: true, ...rest },
    options,
    new RotaryEmbedding(4, options.device),
  );

const MODULES: Record<string, Make> = {
  Linear: (options) => new Linear(8, 5, { ...options, activation: "silu" }),
  LayerNorm: (options) => new LayerNorm(8, options),
  RMSNorm: (options) => new RMSNorm(8, options),
  MLP: (options) => new MLP(8, options),
  "power attention": attention({}),
  "power attention in chunks": attention({ chunkSize: 3 }),
  "grouped power attention without gates": attention({ qheadRatio: 2, disableGating: true, bias: false }),
  "power attention of degree 3": attention({ degree: 3 }),
  "softmax attention": attention({ attention: "softmax", qheadRatio: 2 }),
  Block: (options) => new Block({ nEmbd: 8, nHead: 2, bias: true }, options),
  "Block with RMSNorm": (options) => new Block({ nEmbd: 8, nHead: 2, norm: "rms" }, options),
};

test.each(Object.entries(MODULES))("%s: outputs and gradients of wasm are the oracle's", async (_, make) => {
  const want = await evaluate(make, [2, 7, 8], devices.oracle());
  const got = await evaluate(make, [2, 7, 8], devices.wasm());
  expect(Object.keys(got)).toEqual(Object.keys(want));
  for (const [name, values] of Object.entries(want)) {
    const top = Math.max(...values.map(Math.abs));
    expect(top, name).toBeGreaterThan(1e-6);
    expect(worst(got[name], values), name).toBeLessThan(5e-5);
  }
});

test.each(Object.entries(MODULES))("%s: gradients are the differences of outputs", async (_, make) => {
  const device = devices.oracle();
  const shape = [1, 4, 8];
  const analytic = await evaluate(make, shape, device);
  const module = make({ device, generator: new Generator(3) });
  stir(module);
  const x = randn(shape, { device, seed: 5, requiresGrad: true });
  const upstream = await randn(noGrad(() => module.forward(x)).shape, { device, seed: 6 }).data();
  const value = async () => {
    const y = [...(await noGrad(() => module.forward(x)).data())];
    return y.reduce((sum, yk, k) => sum + yk * upstream[k], 0);
  };
  for (const [name, leaf] of [["x", x] as const, ...module.parameters()]) {
    const values = [...(await leaf.data())];
    const expected = analytic[`d(${name})`];
    const top = Math.max(...expected.map(Math.abs));
    // A few elements of each are enough: a wrong gradient is wrong nearly everywhere.
    for (let k = 0; k < values.length; k += Math.ceil(values.length / 5)) {
      const sides: number[] = [];
      for (const step of [2 ** -12, -(2 ** -12)]) {
        device.write(leaf.storage, values.with(k, Math.fround(values[k]) + step));
        sides.push(await value());
      }
      device.write(leaf.storage, values);
      expect(Math.abs((sides[0] - sides[1]) / 2 ** -11 - expected[k]) / top, `d(${name})[${k}]`).toBeLessThan(2e-3);
    }
  }
});

test("parameters are found by property, once each, and saved and loaded by name", async () => {
  class Pair extends Module {
    readonly first: Linear;
    readonly parts: Module[];
    readonly shared: Tensor;
    readonly table: Tensor;

    constructor(options: ModuleOptions) {
      super();
      this.first = new Linear(2, 3, { ...options, bias: false });
      this.parts = [new LayerNorm(3, options), this.first];
      this.shared = this.first.weight;
      this.table = ones([4], options); // not a parameter
    }
  }
  const options = { device: devices.oracle() };
  const pair = new Pair(options);
  expect([...pair.parameters().keys()]).toEqual(["first.weight", "parts.0.weight", "parts.0.bias"]);
  expect(pair.parameterCount).toBe(12);
  expect(pair.eval().parts[0].training).toBe(false);
  expect(pair.train().first.training).toBe(true);
  const dict = await pair.stateDict();
  const other = new Pair(options);
  other.loadStateDict(dict);
  expect([...(await other.first.weight.data())]).toEqual([...(await pair.first.weight.data())]);
  const values = new Float32Array(6);
  expect(() => other.loadStateDict(new Map([...dict, ["first.weight", { shape: [2, 3], values }]]))).toThrow(
    /first.weight must have shape \[3, 2\]/,
  );
  expect(() => other.loadStateDict(new Map([["first.weight", { shape: [3, 2], values }]]))).toThrow(
    /missing: parts.0.weight, parts.0.bias/,
  );
  expect(() => parameter(ones([1], options))).toThrow(/requiresGrad/);
});

test("an embedding's gradient reaches its table", async () => {
  const device = devices.oracle();
  const embedding = new Embedding(3, 2, { device });
  const ids = tensor([[0, 2, 2]], undefined, { device, dtype: "i32" });
  embedding.forward(ids).sum().backward();
  expect([...(await embedding.weight.grad!.data())]).toEqual([1, 1, 0, 0, 2, 2]);
});

test("recomputing gives the same gradients and keeps less", async () => {
  for (const device of [devices.oracle(), devices.wasm()]) {
    const grads: number[][] = [];
    const held: number[] = [];
    for (const again of [false, true]) {
      const block = new Block({ nEmbd: 8, nHead: 2 }, { device, generator: new Generator(3) });
      stir(block);
      const x = randn([2, 7, 8], { device, seed: 5, requiresGrad: true });
      const before = device.memory().used;
      const forward = (t: Tensor) => block.forward(t);
      const y = again ? recompute(forward, x) : forward(x);
      held.push(device.memory().used - before);
      y.backward(randn(y.shape, { device, seed: 6 }));
      grads.push([x, ...block.parameters().values()].flatMap(({ grad }) => Array.from(valuesNow(grad!))));
    }
    expect(grads[1]).toEqual(grads[0]);
    expect(held[1]).toBeLessThan(held[0]);
  }
});

function valuesNow(x: Tensor): ArrayLike<number> {
  return x.device.readNow!(x.contiguous().storage, x.contiguous().offset, x.size);
}

test("a cache goes on where the sequence was, for power and softmax attention", async () => {
  const device = devices.oracle();
  for (const kind of ["power", "softmax"] as const) {
    const module = attention({ attention: kind, qheadRatio: 2 })({ device, generator: new Generator(3) });
    stir(module);
    const x = randn([2, 9, 8], { device, seed: 5 });
    const whole = [...(await noGrad(() => module.forward(x)).data())];
    const cache = module.cache(2);
    const lengths = [4, 1, 1, 1, 1, 1];
    let start = 0;
    for (const length of lengths) {
      const piece = await noGrad(() => module.forward(x.slice(1, start, start + length), cache)).data();
      const want = fromValues(device, whole, [2, 9, 8], "f32").slice(1, start, start + length);
      expect(worst([...piece], [...(await want.data())])).toBeLessThan(1e-6);
      start += length;
    }
    expect(cache.tokens).toBe(9);
  }
});

test("gates start near 0.999 and the sizes must fit", async () => {
  const device = devices.oracle();
  const module = new CausalSelfAttention({ nEmbd: 8, nHead: 2 }, { device });
  expect(module.gateBias).toBeDefined();
  const bias = [...(await module.gateBias!.data())];
  for (const b of bias) expect(1 / (1 + Math.exp(-b))).toBeCloseTo(0.999, 4);
  expect(module.gate!.shape).toEqual([2, 8]);
  expect(() => new CausalSelfAttention({ nEmbd: 8, nHead: 3 }, { device })).toThrow(
    /headSize must be a positive integer/,
  );
  expect(() => new RotaryEmbedding(3, device)).toThrow(/even/);
});
