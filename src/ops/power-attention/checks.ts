import type { Device } from "../../devices/device.js";
import { expandedDim, MAX_STATE_DEGREE } from "../../feature-map.js";
import type { DType } from "../../tensor/dtype.js";
import { type Shape, sameShape } from "../../tensor/shape.js";
import { isTensor, type Tensor } from "../../tensor/tensor.js";
import { gateCheck } from "../gate-check/index.js";
import type { Normalize, SequencePlan, State } from "./contract.js";

/** The rules that powerFull, PowerState and the low-level operations share. Each error names function, rule, value, way out. */
export const MAX_HEAD_DIM = 256;

const FLOATS: readonly DType[] = ["f32", "f16", "bf16"];

export function show(value: unknown): string {
  if (isTensor(value)) return String(value);
  if (typeof value === "string") return JSON.stringify(value);
  if (Array.isArray(value)) return `an array of ${value.length}`;
  return value !== null && typeof value === "object" ? "an object" : String(value);
}

function list(shape: Shape): string {
  return `[${shape.join(", ")}]`;
}

export function checkOptionNames(caller: string, options: object, known: readonly string[]): void {
  for (const name of Object.keys(options)) {
    if (!known.includes(name)) {
      throw new TypeError(`${caller}: options are ${known.join(", ")}, got "${name}"; correct or remove it`);
    }
  }
}

export function checkTensor(caller: string, name: string, value: unknown): asserts value is Tensor {
  if (!isTensor(value)) {
    throw new TypeError(
      `${caller}: ${name} must be a Tensor, got ${show(value)}; make one with tensor(data, shape, { device })`,
    );
  }
}

export function checkPositiveInteger(caller: string, name: string, value: unknown, wayOut: string): void {
  if (!Number.isInteger(value) || (value as number) < 1) {
    throw new RangeError(`${caller}: ${name} must be a positive integer, got ${show(value)}; ${wayOut}`);
  }
}

export function checkShapeIs(caller: string, name: string, tensor: Tensor, shape: Shape, meaning: string): void {
  if (!sameShape(tensor.shape, shape)) {
    throw new RangeError(
      `${caller}: ${name} must have shape ${list(shape)} (${meaning}), got ${list(tensor.shape)}; reshape or slice it`,
    );
  }
}

export function checkF32(caller: string, name: string, tensor: Tensor): void {
  if (tensor.dtype !== "f32") {
    throw new TypeError(`${caller}: ${name} must be f32, got ${tensor.dtype}; convert it with to("f32")`);
  }
}

/** All tensors of a call are on one device. */
export function checkDevices(caller: string, tensors: Record<string, Tensor | undefined>): Device {
  const given = Object.entries(tensors).filter((entry): entry is [string, Tensor] => entry[1] !== undefined);
  const [first, { device }] = given[0];
  for (const [name, tensor] of given) {
    if (tensor.device === device) continue;
    const both = device.kind === tensor.device.kind ? `two ${device.kind} devices` : "";
    throw new TypeError(
      `${caller}: all tensors must be on one device, got ${both || `${first} on ${device.kind} and ${name} on ${tensor.device.kind}`}` +
        `; copy one with await ${name}.copyTo(device)`,
    );
  }
  return device;
}

/** The axis whose disagreement a message names, with the tensors' ranks checked. */
export interface Heads {
  batch: number;
  time: number;
  queryHeads: number;
  heads: number;
  headDim: number;
  valueDim: number;
}

/** Checks whichever of q, k and v a function takes: rank, dtype, batch, time, heads, head dims. */
export function checkHeads(caller: string, tensors: { q?: unknown; k?: unknown; v?: unknown }): Heads {
  const given = Object.entries(tensors) as [string, Tensor][];
  for (const [name, tensor] of given) {
    checkTensor(caller, name, tensor);
    if (tensor.shape.length !== 4) {
      const dim = name === "v" ? "valueDim" : "headDim";
      throw new RangeError(
        `${caller}: ${name} must have shape [batch, time, heads, ${dim}], got ${list(tensor.shape)}; reshape it`,
      );
    }
  }
  const names = given.map(([name]) => name).join(", ");
  const dtypes = given.map(([, tensor]) => tensor.dtype);
  if (!FLOATS.includes(dtypes[0]) || dtypes.some((dtype) => dtype !== dtypes[0])) {
    throw new TypeError(
      `${caller}: ${names} must share one float dtype, got ${dtypes.join(", ")}; convert with to("f32"), "f16" or "bf16"`,
    );
  }
  const [firstName, first] = given[0];
  const [batch, time] = first.shape;
  for (const [name, { shape }] of given) {
    if (shape[0] !== batch || shape[1] !== time) {
      throw new RangeError(
        `${caller}: ${firstName} and ${name} must agree in batch and time, got ${list(first.shape)} and ${list(shape)}; slice or reshape one`,
      );
    }
    if (shape[2] < 1) {
      throw new RangeError(`${caller}: ${name} must have at least one head, got ${list(shape)}; reshape it`);
    }
    if (shape[3] < 1 || shape[3] > MAX_HEAD_DIM) {
      const dim = name === "v" ? "valueDim" : "headDim";
      throw new RangeError(
        `${caller}: ${dim} must be from 1 to ${MAX_HEAD_DIM}, got ${shape[3]} (${name} is ${list(shape)}); use more, smaller heads`,
      );
    }
  }
  const { q, k, v } = tensors as { q?: Tensor; k?: Tensor; v?: Tensor };
  const queryHeads = (q ?? k ?? v)!.shape[2];
  const heads = (k ?? v ?? q)!.shape[2];
  if (q && k && q.shape[3] !== k.shape[3]) {
    throw new RangeError(
      `${caller}: q and k must have the same head dim, got ${q.shape[3]} and ${k.shape[3]}; only v's may differ`,
    );
  }
  if (k && v && k.shape[2] !== v.shape[2]) {
    throw new RangeError(
      `${caller}: k and v must have the same number of heads, got ${k.shape[2]} and ${v.shape[2]}; only q may have more`,
    );
  }
  checkGrouping(caller, queryHeads, heads);
  const headDim = (q ?? k)?.shape[3] ?? 1;
  return { batch, time, queryHeads, heads, headDim, valueDim: v?.shape[3] ?? 1 };
}

export function checkGrouping(caller: string, queryHeads: number, heads: number): void {
  if (queryHeads % heads !== 0) {
    throw new RangeError(
      `${caller}: query heads must be a multiple of key heads, got ${queryHeads} and ${heads}; ` +
        "query heads share key heads in equal groups",
    );
  }
}

export function checkLogG(caller: string, logG: unknown, shape: Shape): asserts logG is Tensor {
  checkTensor(caller, "logG", logG);
  checkF32(caller, "logG", logG);
  checkShapeIs(caller, "logG", logG, shape, "batch, time, key heads");
}

/**
 * A gate above 1 would make memory grow without bound. A device that cannot read at once only looks in check mode, and
 * its next read or sync throws.
 */
export function checkGates(caller: string, logG: Tensor): void {
  const { shape } = logG;
  gateCheck(logG.device, logG, (at, value) => {
    const index: number[] = [];
    let rest = at;
    for (const extent of shape.toReversed()) {
      index.unshift(rest % extent);
      rest = Math.floor(rest / extent);
    }
    return new RangeError(
      `${caller}: logG must hold logs of gates in (0, 1], so at most 0, got ${value} at ${list(index)}; pass logSigmoid(x)`,
    );
  });
}

/** For operations that work with states, which exist for degrees 1 … 4. */
export function checkStateDegree(caller: string, degree: number, wanted: string, wayOut: string): void {
  checkPositiveInteger(caller, "degree", degree, "use 1, 2, 3 or 4");
  if (degree > MAX_STATE_DEGREE) {
    throw new RangeError(
      `${caller}: ${wanted} needs a degree from 1 to ${MAX_STATE_DEGREE}, got degree ${degree}; ${wayOut}`,
    );
  }
}

export function checkScale(caller: string, scale: unknown): void {
  if (typeof scale !== "number" || !Number.isFinite(scale)) {
    throw new RangeError(
      `${caller}: scale must be a finite number, got ${show(scale)}; leave it out for 1/sqrt(headDim)`,
    );
  }
}

export function checkNormalize(caller: string, normalize: unknown, degree: number): void {
  if (normalize !== "sum" && normalize !== "layernorm" && normalize !== "none") {
    throw new RangeError(
      `${caller}: normalize must be "sum", "layernorm" or "none", got ${show(normalize)}; leave it out for the default`,
    );
  }
  if (normalize === "sum" && degree % 2 === 1) {
    throw new RangeError(
      `${caller}: normalize "sum" needs an even degree (signed weights make no mean), got degree ${degree}; ` +
        'use "layernorm" or "none"',
    );
  }
}

export function defaultNormalize(degree: number): Normalize {
  return degree % 2 === 0 ? "sum" : "layernorm";
}

export function checkState(
  caller: string,
  name: string,
  state: unknown,
  dims: Pick<SequencePlan, "batch" | "heads" | "headDim" | "valueDim" | "degree">,
): asserts state is State {
  if (state === null || typeof state !== "object" || isTensor(state)) {
    throw new TypeError(`${caller}: ${name} must be { s, z }, got ${show(state)}; pass a finalState`);
  }
  const { s, z } = state as Partial<State>;
  checkTensor(caller, `${name}.s`, s);
  checkTensor(caller, `${name}.z`, z);
  checkF32(caller, `${name}.s`, s);
  checkF32(caller, `${name}.z`, z);
  const { batch, heads, headDim, valueDim, degree } = dims;
  const D = expandedDim(headDim, degree);
  const other = [1, 2, 3, 4].find((p) => p !== degree && expandedDim(headDim, p) === s.shape[2] && headDim > 1);
  if (other && s.shape.length === 4) {
    throw new RangeError(
      `${caller}: ${name} must be of degree ${degree}, got one of degree ${other} (${list(s.shape)}); pass degree: ${other}`,
    );
  }
  const meaning = `for degree ${degree} and head dim ${headDim}`;
  checkShapeIs(
    caller,
    `${name}.s`,
    s,
    [batch, heads, D, valueDim],
    `batch, key heads, expandedDim, valueDim ${meaning}`,
  );
  checkShapeIs(caller, `${name}.z`, z, [batch, heads, D], `batch, key heads, expandedDim ${meaning}`);
}

/** Refuses a state that the device could never hold, before any work. */
export function checkStateFits(
  caller: string,
  device: Device,
  dims: { batch: number; heads: number; valueDim: number; headDim: number; degree: number; expandedDim: number },
  wayOut: string,
): void {
  const bytes = 4 * dims.batch * dims.heads * dims.expandedDim * (dims.valueDim + 1);
  if (bytes <= device.memoryLimit) return;
  const gib = (n: number) => `${(n / 2 ** 30).toFixed(2)} GiB`;
  throw new RangeError(
    `${caller}: a state must fit the device's ${gib(device.memoryLimit)}, got ${gib(bytes)} ` +
      `(batch ${dims.batch} × ${dims.heads} heads × expandedDim ${dims.expandedDim} × (valueDim ${dims.valueDim} + 1) × 4 bytes ` +
      `for degree ${dims.degree}, headDim ${dims.headDim}); ${wayOut}`,
  );
}

/** The shared part of a plan; `chunkSize` null means a single chunk. */
export function sequencePlan(
  dims: Heads,
  rest: { degree: number; scale: number; chunkSize: number | null; gated: boolean },
): SequencePlan {
  const chunkSize = Math.min(rest.chunkSize ?? Number.POSITIVE_INFINITY, Math.max(dims.time, 1));
  return {
    ...dims,
    degree: rest.degree,
    scale: rest.scale,
    chunkSize,
    chunks: Math.ceil(dims.time / chunkSize),
    expandedDim: rest.degree <= MAX_STATE_DEGREE ? expandedDim(dims.headDim, rest.degree) : 0,
    gated: rest.gated,
  };
}

/**
 * What the parts of power attention check alike, once they know their dimensions: scale, gates, and that `tensors` are on one
 * device with them.
 */
export function planPart(
  caller: string,
  dims: Heads,
  tensors: Record<string, Tensor>,
  { logG, degree, scale, chunkSize }: { logG: Tensor | undefined; degree: number; scale: number; chunkSize: number },
): { device: Device; plan: SequencePlan; logG: Tensor | undefined } {
  checkScale(caller, scale);
  if (logG) checkLogG(caller, logG, [dims.batch, dims.time, dims.heads]);
  const device = checkDevices(caller, { ...tensors, logG });
  const gates = logG?.contiguous();
  if (gates) checkGates(caller, gates);
  return { device, plan: sequencePlan(dims, { degree, scale, chunkSize, gated: gates !== undefined }), logG: gates };
}
