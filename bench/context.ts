import {
  type Device,
  Generator,
  getDevice,
  powerFull,
  randn,
  scope,
  softmaxAttention,
  type Tensor,
  tensor,
} from "../src/index.js";
import type { Shape } from "./arithmetic.js";

/** A number with what it must reach; without a target it is only reported. */
export interface Figure {
  /** Short and stable: two runs are compared by it. */
  name: string;
  value: number;
  /** "%", "×", "ms", "GFLOP/s", "MiB", "µs", "tokens" or "" */
  unit: string;
  atLeast?: number;
  atMost?: number;
  /** Interquartile range over median of the timings behind the value. */
  spread?: number;
  /** A result that is wrong, not merely slow: the run fails when the target is missed. */
  correctness?: boolean;
}

export interface Result {
  figures: Figure[];
  /** Rows of a longer table, where the question has one. */
  table?: { columns: string[]; rows: (number | string)[][] };
  /** What was run, for people: shapes, chunk sizes, versions. */
  notes?: Record<string, string | number>;
}

/** One question of the benchmark; each lives in a file of its own. */
export interface Question {
  name: string;
  question: string;
  target: string;
  run(context: Context): Promise<Result>;
}

export class Context {
  readonly #devices = new Map<number, Promise<Device>>();

  constructor(
    /** Fewer rounds and shorter sequences: to see that it runs, not to quote. */
    readonly quick: boolean,
    /** The most threads that anything uses. */
    readonly threads: number,
    readonly progress: (line: string) => void,
  ) {}

  /** The wasm device with that many threads; the same one each time. */
  device(threads: number): Promise<Device> {
    let device = this.#devices.get(threads);
    if (!device) {
      device = getDevice("wasm", { threads });
      this.#devices.set(threads, device);
    }
    return device;
  }

  get rounds(): { warmUp: number; rounds: number } {
    return this.quick ? { warmUp: 1, rounds: 3 } : { warmUp: 2, rounds: 9 };
  }

  async dispose(): Promise<void> {
    for (const device of this.#devices.values()) (await device).dispose();
  }
}

/** Inputs of an attention on a device; they live until `dispose`. */
export interface Inputs {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  logG: Tensor;
  upstream: Tensor;
  dispose(): void;
}

/** Standard normal values; gates around 0.9 (logSigmoid of a normal plus 2). */
export function makeInputs(
  device: Device,
  shape: Pick<Shape, "batch" | "tokens" | "queryHeads" | "heads" | "headDim" | "valueDim">,
  requiresGrad: boolean,
  seed = 1,
): Inputs {
  const { batch: B, tokens: T, queryHeads, heads: H, headDim: d, valueDim: e } = shape;
  const like = { device, requiresGrad };
  const generator = new Generator(seed + 3);
  const gates = Float32Array.from({ length: B * T * H }, () => -Math.log1p(Math.exp(-(generator.normal() + 2))));
  const inputs = {
    q: randn([B, T, queryHeads, d], { ...like, seed }),
    k: randn([B, T, H, d], { ...like, seed: seed + 1 }),
    v: randn([B, T, H, e], { ...like, seed: seed + 2 }),
    logG: tensor(gates, [B, T, H], like),
    upstream: randn([B, T, queryHeads, e], { device, seed: seed + 4 }),
  };
  return {
    ...inputs,
    dispose: () => {
      clearGradients(inputs);
      for (const input of Object.values(inputs)) input.dispose();
    },
  };
}

export function clearGradients(inputs: object): void {
  for (const input of Object.values(inputs) as Tensor[]) {
    input.grad?.dispose();
    input.grad = null;
  }
}

export interface PowerChoice {
  degree: number;
  /** undefined: the library's own choice; null: the quadratic form. */
  chunkSize?: number | null;
}

/** One forward pass, or one forward and backward pass, of power attention; nothing it makes stays. */
export function powerTask(inputs: Inputs, choice: PowerChoice, backward: boolean): () => undefined {
  const { q, k, v, logG, upstream } = inputs;
  return () => {
    scope(() => {
      const out = powerFull(q, k, v, { logG, ...choice });
      if (backward) out.backward(upstream);
    });
    clearGradients({ q, k, v, logG });
  };
}

export function softmaxTask(inputs: Inputs, backward: boolean): () => undefined {
  const { q, k, v, upstream } = inputs;
  return () => {
    scope(() => {
      const out = softmaxAttention(q, k, v);
      if (backward) out.backward(upstream);
    });
    clearGradients({ q, k, v });
  };
}
