import type { WebGpuDevice } from "../src/devices/webgpu/device.js";
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
  /** What is hoped for beyond the target, on the same side of it. */
  aim?: number;
  /** What no implementation passes: the arithmetic and the bytes at the machine's rates. */
  floor?: number;
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
  /** A picture of the result, kept as numbers so that it can be drawn again from JSON. */
  plot?: Plot;
  /** GPU time by kernel of the things that were timed. */
  profiles?: { name: string; kernels: KernelTime[] }[];
  /** What went wrong with a part of the question; the rest stands. */
  failures?: string[];
}

/** Lines over a numeric axis, or groups of bars over named ones; a series may lack points. */
export type Plot = { title: string; x: string; y: string } & (
  | { kind: "lines"; series: Record<string, [number, number][]>; logX?: boolean; logY?: boolean }
  | { kind: "bars"; groups: string[]; series: Record<string, (number | null)[]>; logY?: boolean }
);

/** All dispatches of one kernel in a profiled call. */
export interface KernelTime {
  name: string;
  count: number;
  ms: number;
}

/** Where a question can be asked. */
export type Runs = "wasm" | "webgpu";

/** One question of the benchmark; each lives in a file of its own. */
export interface Question {
  name: string;
  question: string;
  target: string;
  /** Default: wasm alone. */
  on?: readonly Runs[];
  run(context: Context): Promise<Result>;
}

export interface ContextOptions {
  /** Fewer rounds and shorter sequences: to see that it runs, not to quote. */
  quick: boolean;
  /** The most threads that anything uses. */
  threads: number;
  kind: Runs;
  /** Of power attention in the questions to a GPU; default: the library's choice. */
  chunkSize?: number;
  /** Whether the GPU's driver checks bounds; default: as the library has it. */
  boundsChecks?: boolean;
  progress: (line: string) => void;
}

export class Context {
  readonly #devices = new Map<number, Promise<Device>>();
  readonly #gpus = new Map<boolean, WebGpuDevice>();
  readonly quick: boolean;
  readonly threads: number;
  readonly kind: Runs;
  readonly chunkSize: number | undefined;
  readonly boundsChecks: boolean | undefined;
  readonly progress: (line: string) => void;

  constructor({ quick, threads, kind, chunkSize, boundsChecks, progress }: ContextOptions) {
    this.quick = quick;
    this.threads = threads;
    this.kind = kind;
    this.chunkSize = chunkSize;
    this.boundsChecks = boundsChecks;
    this.progress = progress;
  }

  /** The device that the run is about. */
  main(): Promise<Device> {
    return this.kind === "webgpu" ? this.gpu() : this.device(this.threads);
  }

  /** The webgpu device, with or without its matrix units; made anew where an earlier question lost it. */
  async gpu({ portable = false } = {}): Promise<WebGpuDevice> {
    const known = this.#gpus.get(portable);
    if (known && known.lost === undefined) return known;
    const made = (await getDevice("webgpu", { portable, boundsChecks: this.boundsChecks })) as WebGpuDevice;
    this.#gpus.set(portable, made);
    return made;
  }

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

  /** Ends the GPU's devices and with them all they hold, so that one question's memory is not the next one's. */
  releaseGpus(): void {
    for (const device of this.#gpus.values()) device.dispose();
    this.#gpus.clear();
  }

  async dispose(): Promise<void> {
    for (const device of this.#devices.values()) (await device).dispose();
    this.releaseGpus();
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

/** One case of several: where it fails, the error is noted and the others go on. */
export async function attempt<T>(failures: string[], name: string, run: () => Promise<T>): Promise<T | undefined> {
  try {
    return await run();
  } catch (error) {
    failures.push(`${name}: ${error instanceof Error ? error.message : String(error)}`);
    return undefined;
  }
}
