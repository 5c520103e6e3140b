import { record } from "../../tensor/tape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { operation } from "../operation.js";
import {
  checkHeads,
  checkOptionNames,
  checkPositiveInteger,
  checkStateDegree,
  checkStateFits,
  planPart,
} from "../power-attention/checks.js";
import { innermost, toUpstream } from "../power-attention/views.js";
import type { ChunkStateBackward, ChunkStateForward, ChunkStates } from "./contract.js";
import { chunkStateOracle, chunkStateOracleBackward } from "./oracle.js";
import { chunkStateWasm, chunkStateWasmBackward } from "./wasm.js";
import { chunkStateBackwardWebGpu, chunkStateWebGpu } from "./webgpu.js";

export const chunkStateForward = operation<Parameters<ChunkStateForward>, ChunkStates>("chunkState", {
  oracle: chunkStateOracle,
  wasm: chunkStateWasm,
  webgpu: chunkStateWebGpu,
});

export const chunkStateBackward = operation<Parameters<ChunkStateBackward>, ReturnType<ChunkStateBackward>>(
  "chunkState backward",
  { oracle: chunkStateOracleBackward, wasm: chunkStateWasmBackward, webgpu: chunkStateBackwardWebGpu },
);

/**
 * What each chunk of keys and values alone adds to the state:
 * s[c] = Σ_j exp(G_end − G_j) φ(k_j) v_jᵀ and z[c] = Σ_j exp(G_end − G_j) φ(k_j), over the tokens of chunk c, with G the
 * running sum of logG. Differentiable.
 *
 * @param k [B, T, H, d], any float dtype
 * @param v [B, T, H, e], the same dtype
 * @param options.logG [B, T, H] f32, at most 0; default no decay
 * @param options.degree 1 … 4; default 2
 * @param options.chunkSize tokens in a chunk; the last may be shorter
 * @returns s [B, N, H, D, e] and z [B, N, H, D], f32, N = ceil(T / chunkSize), D = expandedDim(d, degree)
 * @throws RangeError or TypeError where shapes, dtypes, devices or options disagree
 */
export function chunkState(
  k: Tensor,
  v: Tensor,
  options: { logG?: Tensor; degree?: number; chunkSize: number },
): ChunkStates {
  const caller = "chunkState";
  const heads = checkHeads(caller, { k, v });
  checkOptionNames(caller, options ?? {}, ["logG", "degree", "chunkSize"]);
  const { degree = 2, chunkSize } = options ?? {};
  checkStateDegree(caller, degree, "a state", "lower the degree");
  checkPositiveInteger(caller, "chunkSize", chunkSize, "pass for example 128");
  const settings = { logG: options.logG, degree, scale: 1, chunkSize };
  const { device, plan, logG } = planPart(caller, heads, { k, v }, settings);
  checkStateFits(
    caller,
    device,
    { ...plan, batch: plan.batch * plan.chunks },
    "use a larger chunkSize or a lower degree",
  );
  const inputs = { k: innermost(k), v: innermost(v), logG };
  const out = chunkStateForward(device, plan, inputs);
  const all = [inputs.k, inputs.v, ...(logG ? [logG] : [])];
  record(caller, all, [out.s, out.z], all, ([s, z], saved) => {
    const upstream = { s: toUpstream(s, "f32"), z: toUpstream(z, "f32") };
    const grads = chunkStateBackward(device, plan, { k: saved[0], v: saved[1], logG: saved[2] }, upstream);
    return [grads.k, grads.v, grads.logG];
  });
  return out;
}
