import { type Device, getDevice, powerFull } from "../../src/index.js";
import type { Shape } from "../arithmetic.js";
import { attempt, type Figure, type Inputs, type Question } from "../context.js";
import { fastInputs, roundToBF16 } from "./inputs.js";

type Values = Record<string, ArrayLike<number>>;

/** Output and gradients, at once or after their widening to f32 on the device, which is much the faster to read. */
async function compute(inputs: Inputs, degree: number, chunkSize: number | null): Promise<Values> {
  const { q, k, v, logG, upstream } = inputs;
  const out = powerFull(q, k, v, { logG, degree, chunkSize });
  out.backward(upstream);
  const values: Values = {};
  const tensors = { output: out, q: q.grad!, k: k.grad!, v: v.grad!, logG: logG.grad! };
  for (const [name, tensor] of Object.entries(tensors)) {
    const wide = tensor.device.kind === "webgpu" ? tensor.detach().to("f32") : tensor;
    values[name] = await wide.data();
    if (wide !== tensor) wide.dispose();
  }
  out.dispose();
  return values;
}

/** ‖got − wanted‖ / ‖wanted‖ over all elements. */
export function normError(got: ArrayLike<number>, wanted: ArrayLike<number>): number {
  if (got.length !== wanted.length) return Number.POSITIVE_INFINITY;
  let difference = 0;
  let size = 0;
  for (let k = 0; k < wanted.length; k++) {
    difference += (got[k] - wanted[k]) ** 2;
    size += wanted[k] ** 2;
  }
  return Math.sqrt(difference / size);
}

/** What storing the exact result in bf16 costs: no bf16 result has less. */
function roundingError(wanted: ArrayLike<number>): number {
  return normError(roundToBF16(Float32Array.from(wanted)), wanted);
}

export const gpuAccuracy: Question = {
  name: "gpu-accuracy",
  question: "How far are bf16 results from float64? (relative norm of the difference; gates of 0.88 and 0.999)",
  target: "output 2.8e-3, gradients 4.5e-3, aim half; the floor is the rounding of the exact result to bf16",
  on: ["webgpu"],
  async run(context) {
    const { quick, threads } = context;
    const failures: string[] = [];
    const figures: Figure[] = [];
    const oracle = await getDevice("oracle");
    const small = { batch: 1, tokens: quick ? 200 : 2048, queryHeads: 2, heads: 2, headDim: 64, valueDim: 64 };
    // Too long for the oracle: f32 on the CPU, whose own error is a thousandth of what is measured.
    const large = { ...small, tokens: quick ? 520 : 65536, queryHeads: quick ? 2 : 8, heads: quick ? 2 : 8 };
    const truth = { float64: () => Promise.resolve<Device>(oracle), "f32 on the CPU": () => context.device(threads) };
    const cases = [
      { label: "2 heads", shape: small, degree: 2, gateBias: 2, against: "float64" },
      { label: "2 heads, gates near 1", shape: small, degree: 2, gateBias: 6.9, against: "float64" },
      {
        label: "p=4, d=16",
        shape: { ...small, headDim: 16, valueDim: 16 },
        degree: 4,
        gateBias: 6.9,
        against: "float64",
      },
      {
        label: `${large.heads} heads, gates near 1`,
        shape: large,
        degree: 2,
        gateBias: 6.9,
        against: "f32 on the CPU",
      },
    ] as const;
    for (const { label, shape, degree, gateBias, against } of cases) {
      const name = `T=${shape.tokens.toLocaleString("en")}, ${label}`;
      context.progress(`  ${name}, against ${against}`);
      await attempt(failures, name, async () => {
        const full: Omit<Shape, "degree" | "chunkSize"> = shape;
        const chunkSize = context.chunkSize ?? (quick ? 64 : 256);
        const device = await context.gpu();
        const inputs = fastInputs(device, full, { dtype: "bf16", requiresGrad: true, gateBias });
        const got = await compute(inputs, degree, chunkSize);
        inputs.dispose();
        const reference = await truth[against]();
        // f32 tensors of the values that bf16 holds: nothing of the reference is rounded to bf16.
        const same = fastInputs(reference, full, { dtype: "f32", rounded: true, requiresGrad: true, gateBias });
        const wanted = await compute(same, degree, against === "float64" ? null : 256);
        same.dispose();
        for (const part of Object.keys(wanted)) {
          figures.push({
            name: `${name}, ${part === "output" ? part : `gradient of ${part}`}`,
            value: normError(got[part], wanted[part]),
            unit: "",
            ...(part === "output" ? { atMost: 2.8e-3, aim: 1.4e-3 } : { atMost: 4.5e-3, aim: 2.25e-3 }),
            floor: part === "logG" ? undefined : roundingError(wanted[part]),
            correctness: true,
          });
        }
      });
    }
    return { figures, failures };
  },
};
