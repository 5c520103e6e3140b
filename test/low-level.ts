import type { Device } from "../src/devices/device.js";
import { expandedDim } from "../src/feature-map.js";
import { chunkAttention } from "../src/ops/chunk-attention/index.js";
import { chunkState } from "../src/ops/chunk-state/index.js";
import { queryState } from "../src/ops/query-state/index.js";
import { stateScan } from "../src/ops/state-scan/index.js";
import { powerFull } from "../src/power-attention.js";
import { roundTo } from "../src/tensor/dtype.js";
import { Generator } from "../src/tensor/random.js";
import { sizeOf } from "../src/tensor/shape.js";
import type { Tensor } from "../src/tensor/tensor.js";
import { type Arrays, backwardAll, place, poison } from "./attention.js";

export type Run = (x: Record<string, Tensor>) => Record<string, Tensor>;

/** Random inputs, or upstream gradients, by name; q, k and v in `dtype`, all times `size` of their names. */
export function draw(
  shapes: Record<string, number[]>,
  seed: number,
  dtype: "f32" | "f16" | "bf16" = "f32",
  size: Record<string, number> = {},
): Arrays {
  const g = new Generator(seed);
  return Object.fromEntries(
    Object.entries(shapes).map(([name, shape]) => {
      const own = ["q", "k", "v"].includes(name) ? dtype : "f32";
      const values = Float64Array.from({ length: sizeOf(shape) }, () =>
        roundTo(own, name === "logG" ? -Math.log1p(Math.exp(-g.normal())) : (size[name] ?? 1) * g.normal()),
      );
      return [name, { shape, values, dtype: own }];
    }),
  );
}

export interface Dims {
  batch: number;
  time: number;
  queryHeads: number;
  heads: number;
  headDim: number;
  valueDim: number;
  chunkSize: number;
  /** Of queryState; default −0.7. */
  scale?: number;
}

export const SMALL: Dims = { batch: 2, time: 7, queryHeads: 4, heads: 2, headDim: 3, valueDim: 2, chunkSize: 3 };

/** Name, inputs, outputs. */
export type Operation = [string, Record<string, number[]>, Record<string, number[]>, Run];

/** Every operation of power attention with its inputs and outputs. */
export function operations(degree: number, gated: boolean, dims = SMALL): Operation[] {
  const { batch: B, time: T, queryHeads: Hq, heads: H, headDim: d, valueDim: e, chunkSize, scale = -0.7 } = dims;
  const N = Math.ceil(T / chunkSize);
  const D = expandedDim(d, degree);
  const logG: Record<string, number[]> = gated ? { logG: [B, T, H] } : {};
  const q = { q: [B, T, Hq, d] };
  const kv = { k: [B, T, H, d], v: [B, T, H, e] };
  const states = { s: [B, N, H, D, e], z: [B, N, H, D] };
  const result = { output: [B, T, Hq, e], sum: [B, T, Hq] };
  const final = { finalS: [B, H, D, e], finalZ: [B, H, D] };
  const options = { degree, chunkSize };
  return [
    ["chunkState", { ...kv, ...logG }, states, (x) => ({ ...chunkState(x.k, x.v, { ...options, logG: x.logG }) })],
    [
      "stateScan",
      { ...states, ...logG, s0: final.finalS, z0: final.finalZ },
      { ...states, ...final },
      (x) => {
        const initialState = { s: x.s0, z: x.z0 };
        const out = stateScan({ s: x.s, z: x.z }, { logG: x.logG, chunkSize, initialState });
        return { ...out.entering, finalS: out.finalState.s, finalZ: out.finalState.z };
      },
    ],
    [
      "chunkAttention",
      { ...q, ...kv, ...logG },
      result,
      (x) => ({ ...chunkAttention(x.q, x.k, x.v, { ...options, scale: 0.7, logG: x.logG }) }),
    ],
    [
      "queryState",
      { ...q, ...states, ...logG },
      result,
      (x) => ({ ...queryState(x.q, { s: x.s, z: x.z }, { ...options, scale, logG: x.logG }) }),
    ],
  ];
}

/** Outputs and gradients of a run on a device; outputs without an upstream gradient get none. */
export async function solveOn(device: Device, inputs: Arrays, upstream: Arrays, run: Run) {
  const x = place(device, inputs, true);
  poison(device);
  const outs = run(x);
  const up = place(device, upstream);
  poison(device);
  const found: Record<string, ArrayLike<number>> = {};
  for (const [name, out] of Object.entries(outs)) found[name] = await out.data();
  const names = Object.keys(outs).filter((name) => up[name]);
  backwardAll(
    names.map((name) => outs[name]),
    names.map((name) => up[name]),
  );
  for (const [name, input] of Object.entries(x)) found[`d${name}`] = await input.grad!.data();
  return found;
}

/** Outputs, final states and gradients of degree 2, normalised by sums: by the four operations, and by powerFull. */
export async function composeAndWhole(
  device: Device,
  { inputs, upstream }: { inputs: Arrays; upstream: Arrays },
  chunkSize: number,
): Promise<Record<string, ArrayLike<number>>[]> {
  const compose: Run = ({ q, k, v, logG, s, z }) => {
    const states = chunkState(k, v, { logG, chunkSize });
    const { entering, finalState } = stateScan(states, { logG, chunkSize, initialState: { s, z } });
    const inside = chunkAttention(q, k, v, { logG, chunkSize });
    const before = queryState(q, entering, { logG, chunkSize });
    const sum = inside.sum.add(before.sum);
    const output = inside.output.add(before.output).div(sum.reshape([...sum.shape, 1]));
    return { output: output.to(q.dtype), ...finalState };
  };
  const whole: Run = ({ q, k, v, logG, s, z }) => {
    const out = powerFull(q, k, v, { logG, chunkSize, initialState: { s, z }, returnFinalState: true });
    return { output: out.output, ...out.finalState };
  };
  return [await solveOn(device, inputs, upstream, compose), await solveOn(device, inputs, upstream, whole)];
}
