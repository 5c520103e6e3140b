import { expandedDim } from "../../feature-map.js";
import { record } from "../../tensor/tape.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { Unnormalised } from "../chunk-attention/contract.js";
import type { ChunkStates } from "../chunk-state/contract.js";
import { operation } from "../operation.js";
import {
  checkGrouping,
  checkHeads,
  checkOptionNames,
  checkPositiveInteger,
  checkShapeIs,
  checkStateDegree,
  planPart,
} from "../power-attention/checks.js";
import { innermost, toUpstream } from "../power-attention/views.js";
import { checkChunkStates } from "../state-scan/index.js";
import type { QueryStateBackward, QueryStateForward } from "./contract.js";
import { queryStateOracle, queryStateOracleBackward } from "./oracle.js";
import { queryStateWasm, queryStateWasmBackward } from "./wasm.js";
import { queryStateBackwardWebGpu, queryStateWebGpu } from "./webgpu.js";

export const queryStateForward = operation<Parameters<QueryStateForward>, Unnormalised>("queryState", {
  oracle: queryStateOracle,
  wasm: queryStateWasm,
  webgpu: queryStateWebGpu,
});

export const queryStateBackward = operation<Parameters<QueryStateBackward>, ReturnType<QueryStateBackward>>(
  "queryState backward",
  { oracle: queryStateOracleBackward, wasm: queryStateWasmBackward, webgpu: queryStateBackwardWebGpu },
);

/**
 * What each query reads from the state that enters its chunk: output_i = scale^degree · exp(G_i) · φ(q_i)ᵀ s[c] and
 * sum_i = scale^degree · exp(G_i) · φ(q_i)·z[c], with G the running sum of logG from the chunk's start. Differentiable.
 *
 * @param q [B, T, Hq, d], any float dtype; Hq a multiple of H
 * @param states entering states: s [B, N, H, D, e] and z [B, N, H, D], f32, as `stateScan` makes them
 * @param options.logG [B, T, H] f32, at most 0; default no decay
 * @param options.degree 1 … 4; default 2
 * @param options.scale default 1/√d
 * @param options.chunkSize tokens in a chunk, N = ceil(T / chunkSize)
 * @returns output [B, T, Hq, e] and sum [B, T, Hq], f32
 * @throws RangeError or TypeError where shapes, dtypes, devices or options disagree
 */
export function queryState(
  q: Tensor,
  states: ChunkStates,
  options: { logG?: Tensor; degree?: number; scale?: number; chunkSize: number },
): Unnormalised {
  const caller = "queryState";
  const dims = checkHeads(caller, { q });
  checkChunkStates(caller, states);
  const [, , heads, , valueDim] = states.s.shape;
  checkGrouping(caller, dims.queryHeads, heads);
  checkOptionNames(caller, options ?? {}, ["logG", "degree", "scale", "chunkSize"]);
  const { degree = 2, scale = 1 / Math.sqrt(dims.headDim), chunkSize } = options ?? {};
  checkStateDegree(caller, degree, "a state", "lower the degree");
  checkPositiveInteger(caller, "chunkSize", chunkSize, "pass the one that made the states");
  const wanted = [dims.batch, Math.ceil(dims.time / chunkSize), heads, expandedDim(dims.headDim, degree), valueDim];
  const meaning = `batch, chunks of ${chunkSize} tokens, heads, expandedDim for degree ${degree} and head dim ${dims.headDim}, valueDim`;
  checkShapeIs(caller, "states.s", states.s, wanted, meaning);
  const { device, plan, logG } = planPart(
    caller,
    { ...dims, heads, valueDim },
    { q, "states.s": states.s, "states.z": states.z },
    { logG: options.logG, degree, scale, chunkSize },
  );
  const inputs = { q: innermost(q), states: { s: states.s.contiguous(), z: states.z.contiguous() }, logG };
  const out = queryStateForward(device, plan, inputs);
  const all = [inputs.q, inputs.states.s, inputs.states.z, ...(logG ? [logG] : [])];
  record(caller, all, [out.output, out.sum], all, ([output, sum], saved) => {
    const upstream = { output: toUpstream(output, "f32"), sum: toUpstream(sum, "f32") };
    const again = { q: saved[0], states: { s: saved[1], z: saved[2] }, logG: saved[3] };
    const grads = queryStateBackward(device, plan, again, upstream);
    return [grads.q, grads.states.s, grads.states.z, grads.logG];
  });
  return out;
}
