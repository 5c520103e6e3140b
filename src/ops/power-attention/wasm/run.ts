import { addressOf, type WasmDevice, type WasmModule } from "../../../devices/wasm/device.js";
import { GROUP } from "../../../devices/wasm/tiles.js";
import { monomials } from "../../../feature-map.js";
import { DTYPE_BYTES, type DType } from "../../../tensor/dtype.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SequencePlan } from "../contract.js";
import { writeBackward } from "./backward.js";
import { BACKWARD_ARGUMENTS, backwardBuffers } from "./backward-buffers.js";
import { featureRuns } from "./expand.js";
import { FORWARD_ARGUMENTS, forwardBuffers, STATES, writeForward } from "./forward.js";
import { type Dimensions, dimensionsOf, type Kernel, Parts } from "./parts.js";
import { NORMALIZE } from "./sequence.js";

/** Addresses of a feature map's tables in a device's memory. */
interface Tables {
  runs: number;
  runCount: number;
  starts: number;
  multiplicity: number;
  root: number;
}

const tables = new WeakMap<WasmDevice, Map<string, Tables>>();
export const NO_TABLES: Tables = { runs: 0, runCount: 0, starts: 0, multiplicity: 0, root: 0 };

export function tablesOf(device: WasmDevice, headDim: number, degree: number): Tables {
  const known = tables.get(device) ?? new Map<string, Tables>();
  tables.set(device, known);
  const key = `${headDim},${degree}`;
  let made = known.get(key);
  if (!made) {
    const runs = featureRuns(headDim, degree);
    const { multiplicities } = monomials(headDim, degree);
    const place = (values: ArrayLike<number>, view: typeof Int32Array | typeof Float32Array) => {
      const address = device.reserve(4 * values.length, `the feature table of head dim ${headDim}, degree ${degree}`);
      new view(device.wasmMemory.buffer, address, values.length).set(values);
      return address;
    };
    made = {
      runs: place(runs.words, Int32Array),
      runCount: runs.words.length / runs.wordsPerRun,
      starts: place(runs.starts, Int32Array),
      multiplicity: place(multiplicities, Float32Array),
      root: place(multiplicities.map(Math.sqrt), Float32Array),
    };
    known.set(key, made);
  }
  return made;
}

/** The compiled kernels for a plan's dimensions. */
function kernelsOf(device: WasmDevice, kernel: Kernel): { module: WasmModule; dim: Dimensions } {
  const dim = dimensionsOf(kernel);
  const { headDim, valueDim, degree, dtype, outDtype } = kernel;
  const module = device.module(`power-attention d=${headDim} e=${valueDim} p=${degree} ${dtype} ${outDtype}`, (m) => {
    const parts = new Parts(m, dim);
    writeForward(parts);
    writeBackward(parts);
  });
  return { module, dim };
}

const bytes = (tensor: Tensor | undefined, axis: number) =>
  tensor ? tensor.strides[axis] * DTYPE_BYTES[tensor.dtype] : 0;

const address = (tensor: Tensor | undefined) => (tensor ? addressOf(tensor) : 0);

/** What is computed, from what: absent tensors are parts that play no role. */
interface Sequence {
  q?: Tensor;
  k?: Tensor;
  v?: Tensor;
  logG?: Tensor;
  /** Of the output and its upstream gradient. Default f32. */
  outDtype?: DType;
  /** Attention inside the chunks. */
  inside: boolean;
  reads: keyof typeof STATES;
  writes: keyof typeof STATES;
  /** States that are read: the initial one (absent: zero), or one for each chunk. */
  from?: { s: Tensor; z: Tensor };
  normalize: keyof typeof NORMALIZE;
  /** The output in f32, where its own dtype is a half. */
  exact?: Tensor;
  queryUnits?: boolean;
  keyUnits?: boolean;
}

export interface ForwardRun extends Sequence {
  output?: Tensor;
  /** [B, T, Hq]: bare row sums, or what the backward needs of each row. */
  rows?: Tensor;
  /** States that are written. */
  to?: { s: Tensor; z: Tensor };
}

export interface BackwardRun extends Sequence {
  output?: Tensor;
  rows?: Tensor;
  upstream: { output?: Tensor; sum?: Tensor; states?: { s: Tensor; z: Tensor } };
  gradients: { q?: Tensor; k?: Tensor; v?: Tensor; logG?: Tensor; from?: { s: Tensor; z: Tensor } };
}

function sequence(device: WasmDevice, plan: SequencePlan, run: Sequence) {
  const { q, k, v, logG } = run;
  const states = run.reads !== "none" || run.writes !== "none";
  const group = q ? plan.queryHeads / plan.heads : 1;
  const table = states ? tablesOf(device, plan.headDim, plan.degree) : NO_TABLES;
  const shared = {
    q: address(q),
    k: address(k),
    v: address(v),
    logG: address(logG),
    qBatch: bytes(q, 0),
    qTime: bytes(q, 1),
    qHead: bytes(q, 2),
    kBatch: bytes(k, 0),
    kTime: bytes(k, 1),
    kHead: bytes(k, 2),
    vBatch: bytes(v, 0),
    vTime: bytes(v, 1),
    vHead: bytes(v, 2),
    time: plan.time,
    heads: plan.heads,
    group,
    chunk: plan.chunkSize,
    chunks: plan.chunks,
    features: states ? plan.expandedDim : 0,
    runs: table.runs,
    starts: table.starts,
    multiplicity: table.multiplicity,
    root: table.root,
    inside: run.inside ? 1 : 0,
    queryUnits: run.queryUnits ? 1 : 0,
    keyUnits: run.keyUnits ? 1 : 0,
    normalize: NORMALIZE[run.normalize],
    exact: address(run.exact),
    scale: plan.scale,
    s0: address(run.from?.s),
    z0: address(run.from?.z),
    reads: STATES[run.reads],
    writes: STATES[run.writes],
  };
  const sizes = { groups: Math.ceil(plan.chunkSize / GROUP), group, features: shared.features };
  return { shared, sizes, states };
}

function kernelOf({ headDim, valueDim, degree }: SequencePlan, { q, k, outDtype = "f32" }: Sequence): Kernel {
  return { headDim, valueDim, degree, dtype: (q ?? k)!.dtype, outDtype };
}

/** Runs the forward kernel over batch × key heads. */
export function runForward(device: WasmDevice, plan: SequencePlan, run: ForwardRun): void {
  const { module, dim } = kernelsOf(device, kernelOf(plan, run));
  const { shared, sizes } = sequence(device, plan, run);
  const { buffers, bytes } = forwardBuffers(dim, sizes);
  const values = {
    ...shared,
    out: address(run.output),
    rowOut: address(run.rows),
    sN: address(run.to?.s),
    zN: address(run.to?.z),
    ...buffers,
  };
  device.run(module, "forward", FORWARD_ARGUMENTS, values, plan.batch * plan.heads, bytes);
}

/** Runs the backward kernel over batch × key heads. */
export function runBackward(device: WasmDevice, plan: SequencePlan, run: BackwardRun): void {
  const { module, dim } = kernelsOf(device, kernelOf(plan, run));
  const { shared, sizes } = sequence(device, plan, run);
  const { buffers, bytes } = backwardBuffers(dim, { ...sizes, chunks: plan.chunks, states: run.reads !== "none" });
  const { upstream, gradients } = run;
  const values = {
    ...shared,
    out: address(run.output),
    dOut: address(upstream.output),
    rowIn: address(run.rows),
    dSumIn: address(upstream.sum),
    dsN: address(upstream.states?.s),
    dzN: address(upstream.states?.z),
    dqOut: address(gradients.q),
    dkOut: address(gradients.k),
    dvOut: address(gradients.v),
    dLogG: address(gradients.logG),
    ds0: address(gradients.from?.s),
    dz0: address(gradients.from?.z),
    ...buffers,
  };
  device.run(module, "backward", BACKWARD_ARGUMENTS, values, plan.batch * plan.heads, bytes);
}

/**
 * Both parts of a state's gradient where either arrived, the absent one of zeros (in `made`, to be disposed);
 * undefined where none did.
 */
export function wholeState(
  device: WasmDevice,
  given: { s?: Tensor; z?: Tensor } | undefined,
  shapes: { s: number[]; z: number[] },
): { states?: { s: Tensor; z: Tensor }; made: Tensor[] } {
  if (!given?.s && !given?.z) return { made: [] };
  const made: Tensor[] = [];
  const zeros = (shape: number[]) => {
    const tensor = empty(shape, device, "f32");
    new Float32Array(device.wasmMemory.buffer, addressOf(tensor), tensor.size).fill(0);
    made.push(tensor);
    return tensor;
  };
  return { states: { s: given.s ?? zeros(shapes.s), z: given.z ?? zeros(shapes.z) }, made };
}
