import { webgpuDevice } from "../../devices/webgpu/device.js";
import { noGrad } from "../../tensor/tape.js";
import { empty, scope, type Tensor } from "../../tensor/tensor.js";
import { pairs } from "../chunk-attention/webgpu-pairs.js";
import { accumulateFeatures } from "../chunk-state/webgpu-accumulate.js";
import { cast } from "../copy/webgpu.js";
import { readState, stateGradient } from "../query-state/webgpu-query.js";
import { scanInPlace, stateInnerProducts } from "../state-scan/webgpu.js";
import type { PowerBackward, PowerForward, PowerInputs, PowerPlan, SequencePlan, State } from "./contract.js";
import {
  backwardOnMatrixUnits,
  chunkStateBytes,
  forwardOnMatrixUnits,
  leavingState,
  tilesFor,
} from "./matrix-units/index.js";
import type { PowerTiles } from "./matrix-units/tiles.js";
import { absent, gateGradient, gateSums } from "./webgpu-gates.js";
import { backwardInPieces, forwardInPieces } from "./webgpu-pieces.js";
import { finishGradient, normalise, normaliseBackward, zerosLike } from "./webgpu-rows.js";

/** Most bytes of chunk states alive at once; beyond it the sequence is taken in parts that hand on their state. */
const STATES_BUDGET = 512 * 2 ** 20;

/** A part of a call: whole sequences, or a run of chunks of a single one. */
interface Part {
  batch: [number, number];
  time: [number, number];
  plan: SequencePlan;
}

/** Parts whose states fit both the budget and one binding, in the order in which states are handed on. */
function partsOf(plan: PowerPlan, like: Tensor): Part[] {
  const { batch, time, chunks, chunkSize, heads, expandedDim, valueDim } = plan;
  const limit = Math.min(STATES_BUDGET, webgpuDevice(like).gpu.limits.maxStorageBufferBindingSize);
  const tiles = tilesFor(plan, like);
  const chunkBytes = tiles ? chunkStateBytes(plan, tiles) : 4 * heads * expandedDim * valueDim;
  if (!plan.usesState || batch * chunks * chunkBytes <= limit) return [{ batch: [0, batch], time: [0, time], plan }];
  const run = Math.max(1, Math.floor(limit / chunkBytes));
  const parts: Part[] = [];
  for (let b = 0; b < batch; b++) {
    for (let c = 0; c < chunks; c += run) {
      const range: [number, number] = [c * chunkSize, Math.min((c + run) * chunkSize, time)];
      const part = { ...plan, batch: 1, time: range[1] - range[0], chunks: Math.min(run, chunks - c) };
      parts.push({ batch: [b, b + 1], time: range, plan: part });
    }
  }
  return parts;
}

/** A part's share of a tensor [B, T, …]. */
function take<X extends Tensor | undefined>(x: X, { batch, time }: Part): X {
  return x && (x.slice(0, ...batch).slice(1, ...time) as X);
}

function takeState(state: Partial<State> | undefined, { batch }: Part): Partial<State> | undefined {
  return state && { s: state.s?.slice(0, ...batch), z: state.z?.slice(0, ...batch) };
}

function takeInputs({ q, k, v, logG }: PowerInputs, part: Part) {
  const own = { q: take(q, part), k: take(k, part), v: take(v, part) };
  return { ...own, gates: gateSums(part.plan, take(logG, part), q) };
}

/** Whether any query reads a state: without one before the first chunk, a single chunk only makes a final one. */
function readsState(plan: PowerPlan): boolean {
  return plan.chunks > 1 || plan.hasInitialState;
}

function emptyStates({ batch, chunks, heads, expandedDim, valueDim }: SequencePlan, like: Tensor): State {
  return {
    s: empty([batch, chunks, heads, expandedDim, valueDim], like.device, "f32"),
    z: empty([batch, chunks, heads, expandedDim], like.device, "f32"),
  };
}

/** The states that enter each chunk of a part, and the one that leaves it. */
function enteringStates(part: Part, k: Tensor, v: Tensor, gates: Tensor, initial: Partial<State> | undefined) {
  const entering = emptyStates(part.plan, k);
  accumulateFeatures(part.plan, { keys: k, y: v }, gates, entering);
  return { entering, final: scanInPlace(part.plan, "forward", entering, gates, initial ?? {}) };
}

/** Parts' states, one sequence after the other, as one tensor. */
function gather(pieces: State[], { batch, heads, expandedDim, valueDim }: PowerPlan, like: Tensor): State {
  if (pieces.length === 1) return pieces[0];
  const all = {
    s: empty([batch, heads, expandedDim, valueDim], like.device, "f32"),
    z: empty([batch, heads, expandedDim], like.device, "f32"),
  };
  for (const [b, piece] of pieces.entries()) {
    webgpuDevice(like).copy(piece.s, all.s.slice(0, b, b + 1));
    webgpuDevice(like).copy(piece.z, all.z.slice(0, b, b + 1));
  }
  return all;
}

/** On matrix units; the same parts, each done whole. */
function forwardHalves(plan: PowerPlan, inputs: PowerInputs, tiles: PowerTiles) {
  const { q } = inputs;
  const { batch, time, queryHeads, valueDim, normalize } = plan;
  const shape = [batch, time, queryHeads, valueDim];
  const y = empty(shape, q.device, "f32");
  const rowSum = empty(shape.slice(0, 3), q.device, "f32");
  const output = empty(shape, q.device, q.dtype);
  const finals: State[] = [];
  let carried: Partial<State> | undefined;
  for (const part of partsOf(plan, q)) {
    if (part.time[0] === 0) carried = takeState(inputs.initialState, part);
    const result = { y: take(y, part), rowSum: take(rowSum, part), output: take(output, part) };
    const last = part.time[1] === time;
    const wantLast = plan.returnFinalState || !last;
    const divide = normalize === "sum";
    carried = forwardOnMatrixUnits(part.plan, tiles, takeInputs(inputs, part), divide, result, carried, wantLast);
    if (last && carried) finals.push(carried as State);
  }
  const finalState = plan.returnFinalState ? gather(finals, plan, q) : undefined;
  if (normalize === "sum") return { output, finalState, saved: [rowSum, y] };
  const unrounded = normalise(normalize, y, rowSum, "f32");
  return { output: cast(unrounded, q.dtype), finalState, saved: [rowSum, unrounded] };
}

function forward(plan: PowerPlan, inputs: PowerInputs) {
  const { q } = inputs;
  const tiles = tilesFor(plan, q);
  if (tiles && plan.time > 0) return forwardHalves(plan, inputs, tiles);
  const { batch, time, queryHeads, valueDim } = plan;
  const y = empty([batch, time, queryHeads, valueDim], q.device, "f32");
  const sum = empty([batch, time, queryHeads], q.device, "f32");
  const finals: State[] = [];
  let carried: Partial<State> | undefined;
  for (const part of partsOf(plan, q)) {
    const own = takeInputs(inputs, part);
    const [yPart, sumPart] = [take(y, part), take(sum, part)];
    pairs(part.plan, "output", own, yPart, sumPart);
    if (!plan.usesState) continue;
    if (part.time[0] === 0) carried = takeState(inputs.initialState, part);
    const { entering, final } = enteringStates(part, own.k, own.v, own.gates, carried);
    if (readsState(plan)) readState(part.plan, "queries", own.q, entering, own.gates, yPart, sumPart, true);
    for (const states of [entering.s, entering.z]) states.dispose();
    if (part.time[1] === time) finals.push(final);
    carried = final;
  }
  // In f32 too where the output is rounded: gradients of sums of weights are differences that the rounding would drown.
  const unrounded = normalise(plan.normalize, y, sum, "f32");
  const output = q.dtype === "f32" ? unrounded : cast(unrounded, q.dtype);
  const finalState = plan.returnFinalState ? gather(finals, plan, q) : undefined;
  return { output, finalState, saved: q.dtype === "f32" ? [sum] : [sum, unrounded] };
}

export const powerWebGpu: PowerForward = (plan, inputs) =>
  noGrad(() => scope(() => forwardInPieces(forward)(plan, inputs)));

interface Arriving {
  /** f32, of y and of its sums of weights; and of the final state. */
  dy: Tensor;
  dsum: Tensor;
  dFinal: Partial<State> | undefined;
}

/** Final states and gradients of initial ones, by sequence; only where they are known anyway or asked for. */
interface Ends {
  finals: State[];
  dInitials: State[];
}

/** Each part wants the state that enters it: all but the last part of a sequence are run once more to hand it on. */
function partEntries(
  plan: PowerPlan,
  parts: Part[],
  initial: State | undefined,
  leaving: (part: Part, carried: Partial<State> | undefined) => Partial<State>,
): Map<Part, Partial<State> | undefined> {
  const entries = new Map<Part, Partial<State> | undefined>();
  let carried: Partial<State> | undefined;
  for (const part of parts) {
    if (part.time[0] === 0) carried = takeState(initial, part);
    entries.set(part, carried);
    if (part.time[1] < plan.time) carried = leaving(part, carried);
  }
  return entries;
}

function portableGradients(
  plan: PowerPlan,
  inputs: PowerInputs,
  { dy, dsum, dFinal }: Arriving,
  { q: dQ, k: dK, v: dV }: { q: Tensor; k: Tensor; v: Tensor },
): Ends {
  const { q } = inputs;
  const states = readsState(plan) || dFinal !== undefined;
  const parts = partsOf(plan, q);
  const entries = partEntries(plan, states ? parts : [], inputs.initialState, (part, carried) => {
    const own = takeInputs(inputs, part);
    const { entering, final } = enteringStates(part, own.k, own.v, own.gates, carried);
    for (const states of [entering.s, entering.z]) states.dispose();
    return final;
  });
  const finals: State[] = [];
  const dInitials: State[] = [];
  let arriving: Partial<State> | undefined;
  for (const part of [...parts].reverse()) {
    const { plan: own } = part;
    const given = { ...takeInputs(inputs, part), dy: take(dy, part), rowB: take(dsum, part) };
    const { gates } = given;
    const [dq, dk, dv] = [take(dQ, part), take(dK, part), take(dV, part)];
    pairs(own, "dQ", given, dq);
    pairs(own, "dK", given, dk);
    pairs(own, "dV", { ...given, rowB: undefined }, dv);
    if (!states) continue;
    const { entering, final } = enteringStates(part, given.k, given.v, gates, entries.get(part));
    if (part.time[1] === plan.time) {
      finals.unshift(final);
      arriving = takeState(dFinal, part);
    }
    const dStates = emptyStates(own, q);
    if (readsState(plan)) {
      stateGradient(own, "queries", given.q, given.dy, given.rowB, entering, gates, dq, true);
      accumulateFeatures(own, { queries: given.q, y: given.dy, dsum: given.rowB }, gates, dStates);
    } else for (const gradient of [dStates.s, dStates.z]) webgpuDevice(q).clear(gradient);
    for (const state of [entering.s, entering.z]) state.dispose();
    arriving = scanInPlace(own, "reverse", dStates, gates, arriving ?? {});
    if (part.time[0] === 0) dInitials.unshift(arriving as State);
    stateGradient(own, "keys", given.k, given.v, undefined, dStates, gates, dk, true);
    readState(own, "keys", given.k, dStates, gates, dv, undefined, true);
    for (const gradient of [dStates.s, dStates.z]) gradient.dispose();
  }
  return { finals, dInitials };
}

function halfGradients(
  plan: PowerPlan,
  tiles: PowerTiles,
  inputs: PowerInputs,
  { dy, dsum, dFinal }: Arriving,
  into: { q: Tensor; k: Tensor; v: Tensor },
): Ends {
  const parts = partsOf(plan, inputs.q);
  const leaving = (part: Part, carried: Partial<State> | undefined) =>
    leavingState(part.plan, tiles, takeInputs(inputs, part), carried);
  const entries = partEntries(plan, parts, inputs.initialState, leaving);
  const finals: State[] = [];
  const dInitials: State[] = [];
  let dLast: Partial<State> | undefined;
  for (const part of [...parts].reverse()) {
    const first = entries.get(part);
    if (part.time[1] === plan.time) {
      dLast = takeState(dFinal, part);
      if (plan.gated && dFinal) finals.unshift(leaving(part, first) as State);
    }
    const own = { q: take(into.q, part), k: take(into.k, part), v: take(into.v, part) };
    const upstream = { dy: take(dy, part), dsum: take(dsum, part), first, dLast };
    dLast = backwardOnMatrixUnits(part.plan, tiles, takeInputs(inputs, part), upstream, own, first !== undefined);
    if (part.time[0] === 0 && dLast) dInitials.unshift(dLast as State);
  }
  return { finals, dInitials };
}

function backward(
  plan: PowerPlan,
  inputs: PowerInputs,
  output: Tensor,
  saved: readonly Tensor[],
  upstream: Parameters<PowerBackward>[4],
): ReturnType<PowerBackward> {
  const { q, k, v, logG, initialState } = inputs;
  const dOut = upstream.output ?? zerosLike(output.shape, q, output.dtype);
  const [rowSum, unrounded = output] = saved;
  const [dQ, dK, dV] = [q, k, v].map((x) => empty(x.shape, q.device, "f32"));
  const { s, z } = upstream.finalState ?? {};
  const dFinal = s || z ? { s, z } : undefined;
  const arriving = { ...normaliseBackward(plan.normalize, dOut, unrounded, rowSum), dFinal };
  const tiles = plan.time > 0 ? tilesFor(plan, q) : undefined;
  const into = { q: dQ, k: dK, v: dV };
  const { finals, dInitials } = tiles
    ? halfGradients(plan, tiles, inputs, arriving, into)
    : portableGradients(plan, inputs, arriving, into);

  const degree = logG && plan.degree;
  const [fromQ, fromK] = [finishGradient(q, dQ, degree), finishGradient(k, dK, degree)];
  // All of the sequence as one chunk: what the keys of a chunk give up, the queries of later chunks receive.
  const whole = { ...plan, chunkSize: Math.max(plan.time, 1), chunks: Math.min(plan.time, 1) };
  const perChunk =
    logG && dFinal && stateInnerProducts({ ...whole, chunks: 1 }, dFinal, gather(finals, plan, q), absent(q), false);
  return {
    q: fromQ.result,
    k: fromK.result,
    v: finishGradient(v, dV, undefined).result,
    logG: logG && gateGradient(whole, q, { queries: fromQ.products, keys: fromK.products, perChunk }),
    initialState: initialState && gather(dInitials, plan, q),
  };
}

export const powerBackwardWebGpu: PowerBackward = (...args) =>
  noGrad(() => scope(() => backwardInPieces(backward)(...args)));
