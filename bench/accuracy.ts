import { type Device, getDevice, powerFull } from "../src/index.js";
import { type Figure, makeInputs, type Question } from "./context.js";
import { worstError } from "./peers/peer.js";

const SHAPE = { batch: 1, tokens: 256, queryHeads: 2, heads: 2, headDim: 32, valueDim: 32 };

/** Output and gradients of the same inputs; the seeded values are rounded to f32 on both devices. */
async function compute(device: Device, chunkSize: number | null) {
  const inputs = makeInputs(device, SHAPE, true);
  const { q, k, v, logG, upstream } = inputs;
  const out = powerFull(q, k, v, { logG, chunkSize });
  out.backward(upstream);
  const values: Record<string, ArrayLike<number>> = { output: await out.data() };
  for (const [name, tensor] of Object.entries({ q, k, v, logG })) values[name] = await tensor.grad!.data();
  out.dispose();
  inputs.dispose();
  return values;
}

export const accuracy: Question = {
  name: "accuracy",
  question: "How far is f32 from float64? (T=256, d=32, p=2, gated; worst error relative to the largest value)",
  target: "2e-6 forward, 2e-5 gradients",
  async run(context) {
    const oracle = await getDevice("oracle");
    const wasm = await context.device(context.threads);
    const figures: Figure[] = [];
    for (const [form, chunkSize] of [
      ["chunked", 64],
      ["quadratic", null],
    ] as const) {
      const wanted = await compute(oracle, chunkSize);
      const got = await compute(wasm, chunkSize);
      for (const part of Object.keys(wanted)) {
        figures.push({
          name: part === "output" ? `${form}, output` : `${form}, gradient of ${part}`,
          value: worstError(got[part], wanted[part]),
          unit: "",
          atMost: part === "output" ? 2e-6 : 2e-5,
          correctness: true,
        });
      }
    }
    return { figures, notes: SHAPE };
  },
};
