/** What browser.test.ts runs in a page, and in a worker of a page: wasm against the oracle, there. */
import {
  type Device,
  type DType,
  getDevice,
  type PowerOptions,
  powerFull,
  randn,
  type Tensor,
} from "../../src/index.js";

export interface Report {
  description: string;
  isolated: boolean;
  /** Largest difference from the oracle, relative to the largest value: of outputs, and of all gradients. */
  output: number;
  gradient: number;
}

const [batch, time, queryHeads, heads, headDim, valueDim] = [2, 150, 4, 2, 16, 8];

async function solve(device: Device, dtype: DType, options: PowerOptions): Promise<ArrayLike<number>[]> {
  const place = (shape: number[], seed: number, as: DType = dtype) =>
    randn(shape, { device, dtype: as, requiresGrad: true, seed });
  const q = place([batch, time, queryHeads, headDim], 1);
  const k = place([batch, time, heads, headDim], 2);
  const v = place([batch, time, heads, valueDim], 3);
  const logG = place([batch, time, heads], 4, "f32");
  const gates = logG.mul(logG).mul(-0.1);
  const out = powerFull(q, k, v, { ...options, logG: gates, returnFinalState: false });
  out.backward(randn(out.shape, { device, dtype, seed: 5 }));
  return Promise.all([out, ...[q, k, v, logG].map((x: Tensor) => x.grad!)].map((x) => x.data()));
}

/** NaN where any value is not a number. */
function difference(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let largest = 0;
  let error = 0;
  for (let k = 0; k < want.length; k++) {
    largest = Math.max(largest, Math.abs(want[k]));
    error = Math.max(error, Math.abs(got[k] - want[k]));
  }
  return error / largest;
}

export async function compare(dtype: DType, options: PowerOptions, threads?: number): Promise<Report> {
  const wasm = await getDevice("wasm", threads === undefined ? {} : { threads });
  const oracle = await getDevice("oracle");
  const got = await solve(wasm, dtype, options);
  const want = await solve(oracle, dtype, options);
  const errors = got.map((values, k) => difference(values, want[k]));
  return {
    description: wasm.description,
    isolated: globalThis.crossOriginIsolated,
    output: errors[0],
    gradient: Math.max(...errors.slice(1)),
  };
}

Object.assign(globalThis, { compare });

// Messages are for a worker that runs this file; a page is called by the test.
if (typeof window === "undefined") {
  globalThis.onmessage = ({ data }: MessageEvent<Parameters<typeof compare>>) =>
    compare(...data).then(postMessage, (error) => postMessage(String(error)));
}
