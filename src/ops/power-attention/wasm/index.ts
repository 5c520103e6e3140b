import { addressOf, type WasmDevice, type WasmModule, wasmDevice } from "../../../devices/wasm/device.js";
import { monomials } from "../../../feature-map.js";
import { DTYPE_BYTES } from "../../../tensor/dtype.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { PowerGradients, PowerInputs, PowerPlan, PowerResult, PowerUpstream, SequencePlan } from "../contract.js";
import { BACKWARD_ARGUMENTS, backwardBuffers, writeBackward } from "./backward.js";
import { featureRuns } from "./expand.js";
import { FORWARD_ARGUMENTS, forwardBuffers, STATES, writeForward } from "./forward.js";
import { type Dimensions, dimensionsOf, type Kernel, Parts } from "./parts.js";
import { NORMALIZE } from "./sequence.js";
import { GROUP } from "./tiles.js";

/** Addresses of a feature map's tables in a device's memory. */
interface Tables {
  runs: number;
  starts: number;
  multiplicity: number;
  root: number;
}

const tables = new WeakMap<WasmDevice, Map<string, Tables>>();
const NO_TABLES: Tables = { runs: 0, starts: 0, multiplicity: 0, root: 0 };

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
      starts: place(runs.starts, Int32Array),
      multiplicity: place(multiplicities, Float32Array),
      root: place(multiplicities.map(Math.sqrt), Float32Array),
    };
    known.set(key, made);
  }
  return made;
}

/** The compiled kernels for a plan's dimensions. */
export function kernelsOf(device: WasmDevice, kernel: Kernel): { module: WasmModule; dim: Dimensions } {
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

/** The arguments that all kernels share. */
export function sequenceArguments(
  device: WasmDevice,
  plan: SequencePlan,
  tensors: { q?: Tensor; k?: Tensor; v?: Tensor; logG?: Tensor },
  more: {
    inside: boolean;
    queryUnits?: boolean;
    keyUnits?: boolean;
    normalize: keyof typeof NORMALIZE;
    states: boolean;
  },
) {
  const { q, k, v, logG } = tensors;
  const table = more.states ? tablesOf(device, plan.headDim, plan.degree) : NO_TABLES;
  return {
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
    group: q ? plan.queryHeads / plan.heads : 1,
    chunk: plan.chunkSize,
    chunks: plan.chunks,
    features: more.states ? plan.expandedDim : 0,
    ...table,
    inside: more.inside ? 1 : 0,
    queryUnits: more.queryUnits ? 1 : 0,
    keyUnits: more.keyUnits ? 1 : 0,
    normalize: NORMALIZE[more.normalize],
    scale: plan.scale,
  };
}

export function chunkSizes(plan: SequencePlan, group: number, states: boolean) {
  return { groups: Math.ceil(plan.chunkSize / GROUP), group, features: states ? plan.expandedDim : 0 };
}

/** Sum-normalised outputs don't depend on the size of q, of scale, nor (without a state from outside) of k. */
function units(plan: PowerPlan) {
  const queryUnits = plan.normalize === "sum";
  return { queryUnits, keyUnits: queryUnits && !plan.hasInitialState };
}

export function powerForwardWasm(plan: PowerPlan, inputs: PowerInputs): PowerResult {
  const { q, initialState } = inputs;
  const device = wasmDevice(q);
  const { batch, time, queryHeads, heads, headDim, valueDim, degree, expandedDim } = plan;
  const { module, dim } = kernelsOf(device, { headDim, valueDim, degree, dtype: q.dtype, outDtype: q.dtype });
  const output = empty([batch, time, queryHeads, valueDim], device, q.dtype);
  const rows = empty([batch, time, queryHeads], device, "f32");
  const finalState = plan.returnFinalState
    ? {
        s: empty([batch, heads, expandedDim, valueDim], device, "f32"),
        z: empty([batch, heads, expandedDim], device, "f32"),
      }
    : undefined;
  const { buffers, bytes } = forwardBuffers(dim, chunkSizes(plan, queryHeads / heads, plan.usesState));
  device.run(
    module,
    "forward",
    FORWARD_ARGUMENTS,
    {
      ...sequenceArguments(device, plan, inputs, {
        inside: true,
        ...units(plan),
        normalize: plan.normalize,
        states: plan.usesState,
      }),
      out: address(output),
      rowOut: address(rows),
      s0: address(initialState?.s),
      z0: address(initialState?.z),
      sN: address(finalState?.s),
      zN: address(finalState?.z),
      reads: plan.usesState ? STATES.carry : STATES.none,
      writes: plan.returnFinalState ? STATES.carry : STATES.none,
      ...buffers,
    },
    batch * heads,
    bytes,
  );
  return { output, finalState, saved: [rows] };
}

export function powerBackwardWasm(
  plan: PowerPlan,
  inputs: PowerInputs,
  output: Tensor,
  saved: readonly Tensor[],
  upstream: PowerUpstream,
): PowerGradients {
  const { q, k, v, logG, initialState } = inputs;
  const device = wasmDevice(q);
  const { queryHeads, heads, headDim, valueDim, degree } = plan;
  const { module, dim } = kernelsOf(device, { headDim, valueDim, degree, dtype: q.dtype, outDtype: q.dtype });
  const like = (x: Tensor) => empty(x.shape, device, x.dtype);
  const gradients: PowerGradients = {
    q: like(q),
    k: like(k),
    v: like(v),
    logG: logG && like(logG),
    initialState: initialState && { s: like(initialState.s), z: like(initialState.z) },
  };
  const dFinal = finalGradient(plan, device, upstream.finalState);
  const sizes = chunkSizes(plan, queryHeads / heads, plan.usesState);
  const { buffers, bytes } = backwardBuffers(dim, { ...sizes, chunks: plan.chunks, states: plan.usesState });
  device.run(
    module,
    "backward",
    BACKWARD_ARGUMENTS,
    {
      ...sequenceArguments(device, plan, inputs, {
        inside: true,
        ...units(plan),
        normalize: plan.normalize,
        states: plan.usesState,
      }),
      out: address(output),
      dOut: address(upstream.output),
      rowIn: address(saved[0]),
      dSumIn: 0,
      s0: address(initialState?.s),
      z0: address(initialState?.z),
      dsN: address(dFinal?.s),
      dzN: address(dFinal?.z),
      dqOut: address(gradients.q),
      dkOut: address(gradients.k),
      dvOut: address(gradients.v),
      dLogG: address(gradients.logG),
      ds0: address(gradients.initialState?.s),
      dz0: address(gradients.initialState?.z),
      reads: plan.usesState ? STATES.carry : STATES.none,
      writes: dFinal ? STATES.carry : STATES.none,
      ...buffers,
    },
    plan.batch * heads,
    bytes,
  );
  if (dFinal?.s !== upstream.finalState?.s) dFinal?.s.dispose();
  if (dFinal?.z !== upstream.finalState?.z) dFinal?.z.dispose();
  return gradients;
}

/** Both parts of the final state's gradient where either arrived; the absent one is zero. */
function finalGradient(plan: PowerPlan, device: WasmDevice, given: PowerUpstream["finalState"]) {
  if (!given?.s && !given?.z) return undefined;
  const { batch, heads, expandedDim, valueDim } = plan;
  const zeros = (shape: number[]) => {
    const tensor = empty(shape, device, "f32");
    const count = tensor.size;
    new Float32Array(device.wasmMemory.buffer, addressOf(tensor), count).fill(0);
    return tensor;
  };
  return {
    s: given.s ?? zeros([batch, heads, expandedDim, valueDim]),
    z: given.z ?? zeros([batch, heads, expandedDim]),
  };
}
