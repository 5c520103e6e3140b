import { Device } from "./devices/device.js";
import { expandedDim } from "./feature-map.js";
import * as ops from "./ops/index.js";
import {
  checkGates,
  checkOptionNames,
  checkPositiveInteger,
  checkStateDegree,
  checkStateFits,
  MAX_HEAD_DIM,
  show,
} from "./ops/power-attention/checks.js";
import type { PowerPlan } from "./ops/power-attention/contract.js";
import { powerForward } from "./ops/power-attention/index.js";
import { innermost } from "./ops/power-attention/views.js";
import type { Carry, CarryPlan } from "./ops/step/contract.js";
import { foldTail, stepForward } from "./ops/step/index.js";
import { turned } from "./ops/step/turn.js";
import { type PowerOptions, planPower } from "./options.js";
import { decodeState, encodeState, type StateDims } from "./state-file.js";
import { sameShape } from "./tensor/shape.js";
import { noGrad } from "./tensor/tape.js";
import { empty, fromValues, scope, type Tensor } from "./tensor/tensor.js";

export interface PowerStateOptions {
  device: Device;
  batch: number;
  kvHeads: number;
  /** Of queries and keys, 1 … 256. */
  headDim: number;
  /** Of values, 1 … 256. Default headDim. */
  valueDim?: number;
  /** 1 … 4. Default 2. */
  degree?: number;
  /** Tokens kept as they are before they are folded into the state together. Default 32. */
  foldLength?: number;
}

export interface StepOptions extends Pick<PowerOptions, "logG" | "scale" | "normalize"> {
  /**
   * [2, t, d/2] f32, cosines and then sines of the new tokens' positions: queries and keys are turned by them first, as
   * `rotary` does it (Su et al. 2021), where that is a kernel less. Default: they come as they are to be used.
   */
  angles?: Tensor;
}

const STEP = "PowerState.step";

/** For models that repeat the dispatches of a step of one token without `step`: what it does besides them. */
interface RepeatedStep {
  tail(state: PowerState): number;
  /** Whether there is more than a tail. */
  folded(state: PowerState): boolean;
  /** Folds the tail where it is full, before the step. */
  makeRoom(state: PowerState): void;
  /** Counts the token, after it. */
  advance(state: PowerState): void;
  /** What is disposed with the state. */
  companions(state: PowerState): Set<{ dispose(): void }>;
}
export let repeatedStep: RepeatedStep;

/**
 * What a batch of sequences carries while it is decoded: the state s [B, H, D, e] and z [B, H, D], and a tail of up to
 * foldLength tokens that are not folded into it yet. Its memory is constant after the first fold however long the
 * sequences get; outputs are those of `powerFull` over the whole sequence, whatever the fold length. All in f32.
 */
export class PowerState {
  readonly device: Device;
  readonly batch: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly degree: number;
  readonly foldLength: number;
  #carry: Carry | undefined;
  #tail = 0;
  #tokens = 0;
  readonly #companions = new Set<{ dispose(): void }>();

  static {
    repeatedStep = {
      tail: (state) => state.#tail,
      folded: (state) => state.#open("step").s !== undefined,
      makeRoom(state) {
        const carry = state.#open("step");
        if (state.#tail === state.foldLength) noGrad(() => scope(() => state.#fold(carry)));
      },
      advance(state) {
        state.#tail++;
        state.#tokens++;
      },
      companions: (state) => state.#companions,
    };
  }

  private constructor(dims: StateDims, device: Device) {
    this.device = device;
    this.batch = dims.batch;
    this.kvHeads = dims.kvHeads;
    this.headDim = dims.headDim;
    this.valueDim = dims.valueDim;
    this.degree = dims.degree;
    this.foldLength = dims.foldLength;
    this.#carry = {
      k: empty([dims.batch, dims.foldLength, dims.kvHeads, dims.headDim], device, "f32").keep(),
      v: empty([dims.batch, dims.foldLength, dims.kvHeads, dims.valueDim], device, "f32").keep(),
      logG: empty([dims.batch, dims.foldLength, dims.kvHeads], device, "f32").keep(),
    };
  }

  /**
   * A state before the first token.
   * @throws RangeError or TypeError where a number is not a positive integer or out of range, or the state could never
   *   fit the device's memory
   */
  static empty(options: PowerStateOptions): PowerState {
    const caller = "PowerState.empty";
    if (options === null || typeof options !== "object") {
      throw new TypeError(`${caller}: options must be an object, got ${show(options)}; pass { batch, kvHeads, … }`);
    }
    const known = ["device", "batch", "kvHeads", "headDim", "valueDim", "degree", "foldLength"];
    checkOptionNames(caller, options, known);
    const { device, batch, kvHeads, headDim, valueDim = headDim, degree = 2, foldLength = 32 } = options;
    checkDevice(caller, device);
    const dims = { batch, kvHeads, headDim, valueDim, degree, foldLength };
    checkDims(caller, device, dims);
    return new PowerState(dims, device);
  }

  /** Tokens taken so far. */
  get tokens(): number {
    return this.#tokens;
  }

  /** Bytes of device memory; constant from the first fold on. */
  get bytes(): number {
    return Object.values(this.#open("bytes")).reduce((sum, tensor: Tensor) => sum + tensor.byteLength, 0);
  }

  /**
   * Takes one or more new tokens of each sequence and returns their output, as `powerFull` over the whole sequence
   * would give it. Changes the state in place and records no gradient.
   *
   * @param q [B, t, Hq, d], any float dtype; Hq a multiple of kvHeads
   * @param k [B, t, H, d], the same dtype
   * @param v [B, t, H, e], the same dtype
   * @param options logG [B, t, H] f32, default no decay; scale, default 1/√d; normalize, default by degree; angles
   *   [2, t, d/2] f32, rotary positions that queries and keys are still to be turned by, default none
   * @returns [B, t, Hq, e] in q's dtype
   * @throws RangeError or TypeError where the tokens do not fit the state; the state is then as before
   */
  step(q: Tensor, k: Tensor, v: Tensor, options: StepOptions = {}): Tensor {
    const carry = this.#open("step");
    if (options !== null && typeof options === "object") {
      const { degree } = options as { degree?: number };
      if (degree !== undefined && degree !== this.degree) {
        throw new RangeError(
          `${STEP}: degree must be the state's, got ${degree} for a state of degree ${this.degree}; make another state`,
        );
      }
      checkOptionNames(STEP, options, ["logG", "scale", "normalize", "degree", "angles"]);
    }
    const { angles, ...rest } = options;
    const { plan, device } = planPower(STEP, q, k, v, { ...rest, degree: this.degree, returnFinalState: true });
    this.#checkFits(plan, device);
    if (angles) this.#checkAngles(angles, plan);
    return noGrad(() =>
      scope(() => {
        const logG = options.logG?.contiguous();
        if (logG) checkGates(STEP, logG);
        const inputs = { q: innermost(q), k: innermost(k), v: innermost(v), logG, angles: angles?.contiguous() };
        const output =
          plan.time < this.foldLength ? this.#stepTail(carry, plan, inputs) : this.#stepWhole(carry, plan, inputs);
        this.#tokens += plan.time;
        return output;
      }),
    );
  }

  /** A few tokens: behind the tail, which is folded first where they do not fit. */
  #stepTail(carry: Carry, plan: PowerPlan, inputs: Parameters<typeof stepForward>[3]): Tensor {
    if (plan.time === 0) return empty(inputs.q.shape.with(3, this.valueDim), this.device, inputs.q.dtype);
    if (this.#tail + plan.time > this.foldLength) this.#fold(carry);
    const { queryHeads, scale, normalize, gated, time: tokens } = plan;
    const step = { ...this.#plan(carry), queryHeads, scale, normalize, gated, tokens };
    const output = stepForward(this.device, step, carry, inputs);
    this.#tail += tokens;
    return output;
  }

  /** Many tokens: a sequence of their own that starts from the state. */
  #stepWhole(carry: Carry, plan: PowerPlan, inputs: Parameters<typeof stepForward>[3]): Tensor {
    if (this.#tail > 0) this.#fold(carry);
    const { s, z } = carry;
    const initialState = s && z ? { s, z } : undefined;
    const whole = { ...plan, hasInitialState: initialState !== undefined };
    const { output, finalState, saved } = powerForward(this.device, whole, { ...turned(inputs), initialState });
    for (const tensor of saved) tensor.dispose();
    s?.dispose();
    z?.dispose();
    carry.s = finalState!.s.keep();
    carry.z = finalState!.z.keep();
    return output;
  }

  #plan(carry: Carry): CarryPlan {
    const { batch, kvHeads: heads, headDim, valueDim, degree, foldLength } = this;
    const D = expandedDim(headDim, degree);
    const folded = carry.s !== undefined;
    return { batch, heads, headDim, valueDim, degree, expandedDim: D, foldLength, tail: this.#tail, folded };
  }

  #fold(carry: Carry): void {
    const plan = this.#plan(carry);
    const { batch, heads, expandedDim: D, valueDim } = plan;
    const s = carry.s ?? empty([batch, heads, D, valueDim], this.device, "f32").keep();
    const z = carry.z ?? empty([batch, heads, D], this.device, "f32").keep();
    foldTail(this.device, plan, { ...carry, s, z });
    carry.s = s;
    carry.z = z;
    this.#tail = 0;
  }

  #checkFits(plan: PowerPlan, device: Device): void {
    if (device !== this.device) {
      throw new TypeError(
        `${STEP}: tensors must be on the state's device, got ${device.kind} for a state on ${this.device.kind}; ` +
          "copy them with await q.copyTo(device)",
      );
    }
    const rules: [string, number, number][] = [
      ["batch", plan.batch, this.batch],
      ["key heads", plan.heads, this.kvHeads],
      ["head dim", plan.headDim, this.headDim],
      ["value dim", plan.valueDim, this.valueDim],
    ];
    for (const [name, got, own] of rules) {
      if (got !== own) {
        throw new RangeError(
          `${STEP}: ${name} must be the state's ${own}, got ${got}; make a state with PowerState.empty`,
        );
      }
    }
  }

  #checkAngles(angles: Tensor, { time, headDim }: PowerPlan): void {
    if (angles.device !== this.device || angles.dtype !== "f32") {
      throw new TypeError(
        `${STEP}: angles must be f32 on the state's device, got ${angles.dtype} on ${angles.device.kind}; ` +
          "convert them with to() and copyTo()",
      );
    }
    if (headDim % 2 !== 0 || !sameShape(angles.shape, [2, time, headDim / 2])) {
      throw new RangeError(
        `${STEP}: angles must have shape [2, t, d/2] for an even d, got [${angles.shape.join(", ")}] for ${time} tokens and ` +
          `d ${headDim}; give cosines and sines of each token's position`,
      );
    }
  }

  #open(method: string): Carry {
    if (!this.#carry) {
      throw new Error(`PowerState.${method}: the state must not have been disposed, got a disposed one; make another`);
    }
    return this.#carry;
  }

  /** A state that goes on independently of this one. */
  clone(): PowerState {
    const carry = this.#open("clone");
    const copy = new PowerState(this, this.device);
    for (const tensor of Object.values(copy.#carry!)) tensor.dispose();
    copy.#carry = noGrad(() => {
      const { s, z, k, v, logG } = carry;
      const again = (tensor: Tensor) => ops.contiguous(tensor).keep();
      return { ...(s && z ? { s: again(s), z: again(z) } : {}), k: again(k), v: again(v), logG: again(logG) };
    });
    copy.#tail = this.#tail;
    copy.#tokens = this.#tokens;
    return copy;
  }

  /** Gives the memory back; the state is unusable afterwards. Disposing twice is harmless. */
  dispose(): void {
    for (const thing of [...Object.values(this.#carry ?? {}), ...this.#companions]) thing.dispose();
    this.#carry = undefined;
    this.#companions.clear();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** The tensors of a file: the state where there is one, and the tail's tokens. Called in a scope. */
  #saved(method: string): Record<string, Tensor> {
    const { s, z, k, v, logG } = this.#open(method);
    const tokens = (tensor: Tensor) => tensor.slice(1, 0, this.#tail).contiguous();
    return { ...(s && z ? { s, z } : {}), k: tokens(k), v: tokens(v), logG: tokens(logG) };
  }

  /**
   * The whole state as a safetensors file: f32 values, and the dimensions and version as metadata.
   * @throws Error on a device that only reads asynchronously (webgpu): use `toSafetensorsAsync` there
   */
  toSafetensors(): Uint8Array {
    const { device } = this;
    if (!device.readNow) {
      throw new Error(
        `PowerState.toSafetensors: the device must read at once, got ${device.kind}; use await toSafetensorsAsync()`,
      );
    }
    return scope(() => {
      const values = Object.entries(this.#saved("toSafetensors")).map(
        ([name, { storage, offset, size, shape }]) =>
          [name, { shape, values: device.readNow!(storage, offset, size) }] as const,
      );
      return encodeState(this, this.#tokens, Object.fromEntries(values));
    });
  }

  /** The same on any device. Do not step while it is under way. */
  async toSafetensorsAsync(): Promise<Uint8Array> {
    const tensors = scope(() => this.#saved("toSafetensorsAsync"));
    const own = new Set(Object.values(this.#open("toSafetensorsAsync")));
    const values = await Promise.all(
      Object.entries(tensors).map(
        async ([name, tensor]) => [name, { shape: tensor.shape, values: await tensor.data() }] as const,
      ),
    );
    for (const tensor of Object.values(tensors)) if (!own.has(tensor)) tensor.dispose();
    return encodeState(this, this.#tokens, Object.fromEntries(values));
  }

  /**
   * A state saved by `toSafetensors`, on any device.
   * @throws RangeError where the file is corrupt, of another kind or version, or disagrees with itself
   */
  static fromSafetensors(bytes: Uint8Array, options: { device: Device }): PowerState {
    const caller = "PowerState.fromSafetensors";
    checkDevice(caller, options?.device);
    const { device } = options;
    const file = decodeState(bytes, (dims) => checkDims(caller, device, dims));
    const state = new PowerState(file.dims, device);
    const carry = state.#carry!;
    if (file.s && file.z) {
      const { batch, kvHeads, headDim, valueDim, degree } = file.dims;
      const D = expandedDim(headDim, degree);
      carry.s = fromValues(device, file.s, [batch, kvHeads, D, valueDim], "f32").keep();
      carry.z = fromValues(device, file.z, [batch, kvHeads, D], "f32").keep();
    }
    for (const name of ["k", "v", "logG"] as const) device.write(carry[name].storage, padTail(file, name));
    state.#tail = file.tail;
    state.#tokens = file.tokens;
    return state;
  }
}

/** A file's tail [B, tail, …] as [B, foldLength, …], zeros behind. */
function padTail(file: ReturnType<typeof decodeState>, name: "k" | "v" | "logG"): Float32Array {
  const { batch, kvHeads, headDim, valueDim, foldLength } = file.dims;
  const width = kvHeads * { k: headDim, v: valueDim, logG: 1 }[name];
  const out = new Float32Array(batch * foldLength * width);
  const run = file.tail * width;
  for (let b = 0; b < batch; b++) out.set(file[name].subarray(b * run, (b + 1) * run), b * foldLength * width);
  return out;
}

function checkDevice(caller: string, device: unknown): asserts device is Device {
  if (!(device instanceof Device)) {
    throw new TypeError(`${caller}: device must be a Device, got ${show(device)}; pass await getDevice()`);
  }
}

function checkDims(caller: string, device: Device, dims: StateDims): void {
  const { batch, kvHeads, headDim, valueDim, degree, foldLength } = dims;
  for (const [name, value] of Object.entries({ batch, kvHeads, headDim, valueDim, foldLength })) {
    checkPositiveInteger(caller, name, value, "pass 1 or more");
  }
  checkStateDegree(caller, degree, "a state", "lower the degree");
  for (const [name, value] of Object.entries({ headDim, valueDim })) {
    if (value > MAX_HEAD_DIM) {
      throw new RangeError(
        `${caller}: ${name} must be from 1 to ${MAX_HEAD_DIM}, got ${value}; use more, smaller heads`,
      );
    }
  }
  const size = { batch, heads: kvHeads, headDim, valueDim, degree, expandedDim: expandedDim(headDim, degree) };
  checkStateFits(caller, device, size, "use a lower degree, a smaller head dim or a smaller batch");
}
