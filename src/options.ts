import type { Device } from "./devices/device.js";
import { expandedDim, MAX_STATE_DEGREE } from "./feature-map.js";
import {
  checkDevices,
  checkHeads,
  checkLogG,
  checkNormalize,
  checkOptionNames,
  checkPositiveInteger,
  checkScale,
  checkState,
  checkStateDegree,
  checkStateFits,
  defaultNormalize,
  sequencePlan,
  show,
} from "./ops/power-attention/checks.js";
import type { Normalize, PowerPlan, SequencePlan, State } from "./ops/power-attention/contract.js";
import type { Tensor } from "./tensor/tensor.js";

/** Options of `powerFull`. */
export interface PowerOptions {
  /** [B, T, H] f32, logs of gates in (0, 1], so at most 0; −Infinity forgets everything before. Default: no decay. */
  logG?: Tensor;
  /** What came before: s [B, H, D, e] and z [B, H, D], f32. Default: nothing. Degrees 1 … 4. */
  initialState?: State;
  /** Also return the state after the last token. Default false. Degrees 1 … 4. */
  returnFinalState?: boolean;
  /** p, a positive integer. Default 2. */
  degree?: number;
  /** Multiplies q·k before the power. Default 1/√d. */
  scale?: number;
  /**
   * Tokens in a chunk of the linear-cost form (degrees 1 … 4); null for the quadratic form. Default: whichever costs
   * less, by `chooseChunkSize`.
   */
  chunkSize?: number | null;
  /** Default "sum" for even degrees, "layernorm" for odd ones. */
  normalize?: Normalize;
}

const POWER_OPTIONS: readonly string[] = [
  "logG",
  "initialState",
  "returnFinalState",
  "degree",
  "scale",
  "chunkSize",
  "normalize",
];
/** Tokens in a chunk where nobody chooses: long enough that states cost little memory. */
export const DEFAULT_CHUNK_SIZE = 256;

/**
 * What a token of a query head costs, in multiply-adds:
 *     quadratic   T/2 · (d + e)
 *     chunked     C/2 · (d + e)  +  D · (e + 1)  +  D · (e + 1) · H/Hq
 * — inside the chunk, reading the state, and its share of updating it. Returns the chunk size of the cheaper form,
 * null for the quadratic one; degrees above 4 have no other. A device says with
 * its `chunkSize` and `pairCost` how long its chunks are best, and what a multiply-add between pairs costs beside others.
 */
export function chooseChunkSize(
  plan: Pick<SequencePlan, "time" | "queryHeads" | "heads" | "headDim" | "valueDim" | "degree">,
  { chunkSize = DEFAULT_CHUNK_SIZE, pairCost = 1 }: Partial<Pick<Device, "chunkSize" | "pairCost">> = {},
): number | null {
  const { time, queryHeads, heads, headDim, valueDim, degree } = plan;
  if (degree > MAX_STATE_DEGREE || time <= chunkSize) return null;
  const perPair = pairCost * (headDim + valueDim);
  const state = expandedDim(headDim, degree) * (valueDim + 1) * (1 + heads / queryHeads);
  const chunked = (chunkSize / 2) * perPair + state;
  const quadratic = (time / 2) * perPair;
  return chunked < quadratic ? chunkSize : null;
}

/** Checks every argument of `powerFull`, fills in defaults and makes the plan; nothing below checks them again. */
export function planPower(
  caller: string,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: PowerOptions,
): { plan: PowerPlan; device: Device } {
  if (options === null || typeof options !== "object") {
    throw new TypeError(`${caller}: options must be an object, got ${show(options)}; leave it out for the defaults`);
  }
  checkOptionNames(caller, options, POWER_OPTIONS);
  const dims = checkHeads(caller, { q, k, v });
  const { logG, initialState, returnFinalState = false, degree = 2, scale = 1 / Math.sqrt(dims.headDim) } = options;
  checkPositiveInteger(caller, "degree", degree, "use 2, or another degree of 1 or more");
  const { normalize = defaultNormalize(degree) } = options;
  checkScale(caller, scale);
  checkNormalize(caller, normalize, degree);
  if (typeof returnFinalState !== "boolean") {
    throw new TypeError(
      `${caller}: returnFinalState must be a boolean, got ${show(returnFinalState)}; pass true or false`,
    );
  }
  if (options.chunkSize !== undefined && options.chunkSize !== null) {
    checkPositiveInteger(caller, "chunkSize", options.chunkSize, "use null for the quadratic form");
    checkStateDegree(caller, degree, "the chunked form", "use chunkSize: null, the quadratic form");
  }
  if (initialState !== undefined) {
    checkStateDegree(caller, degree, "initialState", "run the whole sequence at once, without a state");
    checkState(caller, "initialState", initialState, { ...dims, degree });
  }
  if (returnFinalState) {
    checkStateDegree(caller, degree, "returnFinalState", "run the whole sequence at once, without a state");
  }
  if (logG !== undefined) checkLogG(caller, logG, [dims.batch, dims.time, dims.heads]);
  const device = checkDevices(caller, {
    q,
    k,
    v,
    logG,
    "initialState.s": initialState?.s,
    "initialState.z": initialState?.z,
  });
  const chunkSize = options.chunkSize === undefined ? chooseChunkSize({ ...dims, degree }, device) : options.chunkSize;
  const sequence = sequencePlan(dims, { degree, scale, chunkSize, gated: logG !== undefined });
  const usesState = sequence.chunks > 1 || initialState !== undefined || returnFinalState;
  const plan: PowerPlan = {
    ...sequence,
    form: sequence.chunks > 1 ? "chunked" : "quadratic",
    normalize,
    hasInitialState: initialState !== undefined,
    returnFinalState,
    usesState,
  };
  if (usesState) {
    const stateless = "use chunkSize: null (no state), a lower degree or a smaller head dim";
    const stateful = "use a lower degree, a smaller head dim or a smaller batch";
    checkStateFits(caller, device, plan, initialState || returnFinalState ? stateful : stateless);
  }
  return { plan, device };
}
