import { webgpuDevice } from "../../devices/webgpu/device.js";
import { noGrad } from "../../tensor/tape.js";
import { empty, scope, type Tensor } from "../../tensor/tensor.js";
import { pairs } from "../chunk-attention/webgpu-pairs.js";
import { accumulateFeatures } from "../chunk-state/webgpu-accumulate.js";
import { cast } from "../copy/webgpu.js";
import { mapTwo } from "../elementwise/webgpu.js";
import { readState, stateGradient } from "../query-state/webgpu-query.js";
import { reduce } from "../reduce/webgpu.js";
import { scanInPlace, stateInnerProducts } from "../state-scan/webgpu.js";
import type { PowerBackward, PowerForward, PowerInputs, PowerPlan, SequencePlan, State } from "./contract.js";
import {
  backwardOnMatrixUnits,
  chunkStateBytes,
  forwardOnMatrixUnits,
  type HalfGradients,
  keptOf,
  keptTensors,
  leavingState,
  tilesFor,
} from "./matrix-units/index.js";
import type { RowGradients } from "./matrix-units/pack.js";
import type { PowerTiles } from "./matrix-units/tiles.js";
import { absent, gateGradient, gateSums } from "./webgpu-gates.js";
import { type Part, partsOf as partsByStates, take } from "./webgpu-parts.js";
import { backwardInPieces, forwardInPieces } from "./webgpu-pieces.js";
import { finishGradient, normalise, normaliseBackward, zerosLike } from "./webgpu-rows.js";

/** Parts that hand on their state. */
function partsOf(plan: PowerPlan, like: Tensor): Part<PowerPlan>[] {
  const { heads, expandedDim, valueDim } = plan;
  const tiles = tilesFor(plan, like);
  const chunkBytes = tiles ? chunkStateBytes(plan, tiles) : 4 * heads * expandedDim * valueDim;
  return partsByStates(plan, plan.usesState ? chunkBytes : 0, like);
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

/** Parts' states, some sequences after the others, as one tensor. */
function gather(pieces: State[], { batch, heads, expandedDim, valueDim }: PowerPlan, like: Tensor): State {
  if (pieces.length === 1) return pieces[0];
  const all = {
    s: empty([batch, heads, expandedDim, valueDim], like.device, "f32"),
    z: empty([batch, heads, expandedDim], like.device, "f32"),
  };
  let b = 0;
  for (const { s, z } of pieces) {
    const end = b + s.shape[0];
    webgpuDevice(like).copy(s, all.s.slice(0, b, end));
    webgpuDevice(like).copy(z, all.z.slice(0, b, end));
    b = end;
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
  const parts = partsOf(plan, q);
  let kept: Tensor[] = [];
  for (const part of parts) {
    if (part.time[0] === 0) carried = takeState(inputs.initialState, part);
    const result = { y: take(y, part), rowSum: take(rowSum, part), output: take(output, part) };
    const last = part.time[1] === time;
    const wantLast = plan.returnFinalState || !last;
    const divide = normalize === "sum";
    const own = takeInputs(inputs, part);
    const done = forwardOnMatrixUnits(part.plan, tiles, own, divide, result, carried, wantLast);
    carried = done.last;
    if (last && carried) finals.push(carried as State);
    if (parts.length === 1) kept = keptTensors(done.kept);
  }
  const finalState = plan.returnFinalState ? gather(finals, plan, q) : undefined;
  if (normalize === "sum") return { output, finalState, saved: [rowSum, y, ...kept] };
  const unrounded = normalise(normalize, y, rowSum, "f32");
  return { output: cast(unrounded, q.dtype), finalState, saved: [rowSum, unrounded, ...kept] };
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
  parts: Part<PowerPlan>[],
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

function portableGradients(plan: PowerPlan, inputs: PowerInputs, { dy, dsum, dFinal }: Arriving): Ends & HalfGradients {
  const { q, k, v } = inputs;
  const [dQ, dK, dV] = [q, k, v].map((x) => empty(x.shape, q.device, "f32"));
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
  const degree = plan.gated ? plan.degree : undefined;
  const [fromQ, fromK] = [finishGradient(q, dQ, degree), finishGradient(k, dK, degree)];
  return {
    ...{ finals, dInitials, q: fromQ.result, k: fromK.result, v: finishGradient(v, dV, undefined).result },
    products: fromQ.products && fromK.products && { q: fromQ.products, k: fromK.products },
  };
}

function takeRows(gradients: RowGradients, part: Part): RowGradients {
  if ("dy" in gradients) return { dy: take(gradients.dy, part), dsum: take(gradients.dsum, part) };
  const { dMean, mean, rowSum } = gradients;
  return { dMean: take(dMean, part), mean: take(mean, part), rowSum: take(rowSum, part) };
}

function halfGradients(
  plan: PowerPlan,
  tiles: PowerTiles,
  inputs: PowerInputs,
  gradients: RowGradients,
  dFinal: Partial<State> | undefined,
  kept: readonly Tensor[],
): Ends & HalfGradients {
  const like = (x: Tensor) => empty(x.shape, x.device, x.dtype);
  const products = (x: Tensor) => empty(x.shape.slice(0, 3), x.device, "f32");
  const { q, k, v } = inputs;
  const into: HalfGradients = { q: like(q), k: like(k), v: like(v) };
  // A mean does not change with the length of its query, so that q·dq is 0 but for rounding. At degrees 1 and 2 that is in k·dk
  // too, of the same weights: gates get the difference, summed over all later tokens. Features of higher degrees err apart.
  const none = plan.normalize === "sum" && plan.degree > 2;
  if (plan.gated) into.products = { q: none ? undefined : products(q), k: products(k) };
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
      if (plan.gated && dFinal && plan.normalize !== "sum") finals.unshift(leaving(part, first) as State);
    }
    const share = <Q extends Tensor | undefined>(x: { q: Q; k: Tensor }) => ({
      q: take(x.q, part),
      k: take(x.k, part),
    });
    const own = { ...share(into), v: take(into.v, part), products: into.products && share(into.products) };
    const upstream = { gradients: takeRows(gradients, part), first, dLast };
    const given = takeInputs(inputs, part);
    dLast = backwardOnMatrixUnits(
      part.plan,
      tiles,
      given,
      upstream,
      own,
      first !== undefined,
      keptOf(kept, part.plan, first !== undefined),
    );
    if (part.time[0] === 0 && dLast) dInitials.unshift(dLast as State);
  }
  return { finals, dInitials, ...into };
}

function backward(
  plan: PowerPlan,
  inputs: PowerInputs,
  output: Tensor,
  saved: readonly Tensor[],
  upstream: Parameters<PowerBackward>[4],
): ReturnType<PowerBackward> {
  const { q, logG, initialState } = inputs;
  const dOut = upstream.output ?? zerosLike(output.shape, q, output.dtype);
  const [rowSum, unrounded = output, ...kept] = saved;
  const { s, z } = upstream.finalState ?? {};
  const dFinal = s || z ? { s, z } : undefined;
  const tiles = plan.time > 0 ? tilesFor(plan, q) : undefined;
  const ofRows = () => normaliseBackward(plan.normalize, dOut, unrounded, rowSum);
  // Packing divides by sums of weights on its way.
  const toPack = () => (plan.normalize === "sum" ? { dMean: dOut, mean: unrounded, rowSum } : ofRows());
  const { finals, dInitials, products, ...gradients } = tiles
    ? halfGradients(plan, tiles, inputs, toPack(), dFinal, kept)
    : portableGradients(plan, inputs, { ...ofRows(), dFinal });

  // All of the sequence as one chunk: what the keys of a chunk give up, the queries of later chunks receive.
  const whole = { ...plan, chunkSize: Math.max(plan.time, 1), chunks: Math.min(plan.time, 1) };
  const inner = (x: Partial<State>, y: State) => stateInnerProducts({ ...whole, chunks: 1 }, x, y, absent(q), false);
  const dInitial = initialState && gather(dInitials, plan, q);
  let perChunk: Tensor | undefined;
  if (logG && dFinal && finals.length > 0) perChunk = inner(dFinal, gather(finals, plan, q));
  else if (logG && dFinal && products && plan.time > 0) {
    // What keys and the initial state give up and queries do not receive the final state does, and it is known better by
    // the former: the final state's product with its gradient is a small difference of large numbers.
    const shape = [plan.batch, 1, plan.heads];
    const fromKeys = reduce("sum", products.k, [1]).reshape(shape);
    const { q: toQueries } = products;
    const grouped = toQueries?.reshape([...toQueries.shape.slice(0, 2), plan.heads, -1]);
    const left = grouped ? mapTwo("sub", fromKeys, reduce("sum", grouped, [1, 3]).reshape(shape)) : fromKeys;
    perChunk = initialState && dInitial ? mapTwo("add", left, inner(initialState, dInitial)) : left;
  }
  return {
    ...{ q: gradients.q, k: gradients.k, v: gradients.v },
    logG:
      logG &&
      gateGradient(whole, q, { queries: products?.q, keys: products?.k, perChunk, closed: !initialState && !dFinal }),
    initialState: dInitial,
  };
}

export const powerBackwardWebGpu: PowerBackward = (...args) =>
  noGrad(() => scope(() => backwardInPieces(backward)(...args)));
