import { expect, test } from "vitest";
import { getDevice } from "../src/devices/get-device.js";
import { GPT, type GPTConfig, gptConfig } from "../src/models/index.js";
import { AdamW } from "../src/nn/index.js";
import { adamw } from "../src/ops/adamw/index.js";
import { tensor } from "../src/tensor/create.js";
import type { DType } from "../src/tensor/dtype.js";
import { Generator } from "../src/tensor/random.js";
import { trainStep } from "../src/train/step.js";
import { hasAdapter } from "./devices.js";

const kinds = ["wasm", ...(hasAdapter ? (["webgpu"] as const) : [])] as const;
const OPTIONS = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1 };

/** Ids of which each follows from the one before it, but for a few. */
function text(length: number, classes: number): Int32Array {
  const generator = new Generator(3);
  const ids = new Int32Array(length);
  for (let k = 1; k < length; k++) {
    ids[k] = generator.uniform() < 0.1 ? generator.integer(classes) : (5 * ids[k - 1] + 3) % classes;
  }
  return ids;
}

/** Losses of 30 updates of a small GPT on one batch after the other, and what its parameters are kept as. */
async function losses(kind: (typeof kinds)[number], dtype: DType, rest: Partial<GPTConfig>) {
  const device = await getDevice(kind);
  const shape = { nLayer: 2, nEmbd: 32, nHead: 2, headSize: 16, contextLength: 32, bias: true };
  const model = new GPT(gptConfig("tiny", { vocabSize: 61, ...shape, ...rest }), {
    device,
    dtype,
    generator: new Generator(1),
  });
  const optimizer = new AdamW(model.parameters(), OPTIONS);
  const ids = text(4000, 61);
  const found: number[] = [];
  const norms: number[] = [];
  for (let step = 0; step < 30; step++) {
    const rows = [0, 1, 2].map((row) => ids.subarray(96 * step + 32 * row, 96 * step + 32 * row + 33));
    const take = (from: number) => Int32Array.from(rows.flatMap((row) => [...row.subarray(from, from + 32)]));
    const batch = { inputs: take(0), targets: take(1), shape: [3, 32] };
    const { loss, gradientNorm } = await trainStep(model, optimizer, [batch], { learningRate: 0.01, dtype });
    found.push(loss);
    norms.push(gradientNorm);
  }
  const dtypes = new Set([...optimizer.tensors().values()].map((t) => t.dtype));
  const { dtype: matrices } = model.blocks[0].mlp.up.weight;
  const held = { matrices, vectors: model.norm.weight.dtype, optimizer: [...dtypes] };
  optimizer.dispose();
  model.dispose();
  return { found, norms, held };
}

test.each(kinds.flatMap((kind) => [[kind, "f16"] as const, [kind, "bf16"] as const]))(
  "training on %s in %s follows training in f32",
  async (kind, dtype) => {
    for (const rest of [{}, { attention: "softmax", norm: "rms", positions: "learned", bias: false }] as const) {
      const full = await losses(kind, "f32", rest);
      const half = await losses(kind, dtype, rest);
      expect(half.held).toEqual({ matrices: dtype, vectors: "f32", optimizer: ["f32"] });
      expect(full.found.at(-1)!).toBeLessThan(0.75 * full.found[0]);
      const tolerance = dtype === "f16" ? 0.004 : 0.015;
      for (const [k, loss] of full.found.entries()) {
        // Later on two runs are two runs: what differs grows.
        expect(Math.abs(half.found[k] - loss) / loss, `loss ${k}`).toBeLessThan(k < 8 ? tolerance : 0.03);
        if (k >= 8) continue;
        expect(Math.abs(half.norms[k] - full.norms[k]) / full.norms[k], `norm ${k}`).toBeLessThan(10 * tolerance);
      }
    }
  },
);

test.each([...kinds, "oracle" as const])("on %s, gradients that overflowed move nothing", async (kind) => {
  const device = await getDevice(kind);
  const make = (values: number[]) => tensor(values, undefined, { device });
  const [parameter, gradient, mean, square] = [
    [1, 2, 3],
    [4, 4, 4],
    [0, 0, 0],
    [0, 0, 0],
  ].map(make);
  const plan = { learningRate: 0.1, beta1: 0.9, beta2: 0.9, epsilon: 1e-8, weightDecay: 0.1, step: 1, maxNorm: 1 };
  for (const squared of [Number.POSITIVE_INFINITY, Number.NaN]) {
    const squaredNorm = tensor([squared], [], { device });
    adamw(plan, { parameter, gradient, mean, square, squaredNorm });
    for (const [x, want] of [
      [parameter, [1, 2, 3]],
      [mean, [0, 0, 0]],
      [square, [0, 0, 0]],
    ] as const) {
      expect([...(await x.data())]).toEqual(want);
    }
  }
});

test.each([...kinds, "oracle" as const])("on %s, scaled gradients move parameters as plain ones do", async (kind) => {
  const device = await getDevice(kind);
  const run = async (scale: number) => {
    const make = (values: number[]) => tensor(values, undefined, { device });
    const [parameter, gradient, mean, square] = [
      [1, 2, 3],
      [4 * scale, -3 * scale, 0],
      [0, 0, 0],
      [0, 0, 0],
    ].map(make);
    const plan = { learningRate: 0.1, beta1: 0.9, beta2: 0.9, epsilon: 1e-8, weightDecay: 0.1, step: 1, maxNorm: 1 };
    const squaredNorm = tensor([25 * scale * scale], [], { device });
    adamw({ ...plan, unscale: 1 / scale }, { parameter, gradient, mean, square, squaredNorm });
    return [...(await parameter.data()), ...(await mean.data()), ...(await square.data())];
  };
  const [plain, scaled] = [await run(1), await run(1024)];
  for (const [k, value] of plain.entries()) expect(scaled[k]).toBeCloseTo(value, 6);
  expect(plain[3]).toBeCloseTo(0.1 * 0.8, 6);
});
