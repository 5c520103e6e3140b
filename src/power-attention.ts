import { checkGates } from "./ops/power-attention/checks.js";
import type { State } from "./ops/power-attention/contract.js";
import { powerBackward, powerForward } from "./ops/power-attention/index.js";
import { innermost, toUpstream } from "./ops/power-attention/views.js";
import { type PowerOptions, planPower } from "./options.js";
import { record } from "./tensor/tape.js";
import type { Tensor } from "./tensor/tensor.js";

/**
 * Symmetric power attention, causal: out_i = normalize(Σ_{j ≤ i} w_ij v_j) with
 * w_ij = (scale · q_i·k_j)^degree · exp(G_i − G_j) and G the running sum of logG over time. Its cost grows with T, not T²,
 * in the chunked form; both forms give the same numbers. Gradients flow to q, k, v, logG and both parts of initialState,
 * from the output and from finalState.
 *
 * @param q queries [B, T, Hq, d], f32, f16 or bf16; Hq a multiple of H: query head m reads key head floor(m / (Hq/H))
 * @param k keys [B, T, H, d], the same dtype; d from 1 to 256
 * @param v values [B, T, H, e], the same dtype; e from 1 to 256
 * @param options see PowerOptions
 * @returns the output [B, T, Hq, e] in q's dtype; with returnFinalState: true, { output, finalState } where finalState is
 *   s [B, H, D, e] and z [B, H, D] in f32, D = expandedDim(d, degree), and continues the sequence as initialState
 * @throws RangeError or TypeError, before any work, where shapes, dtypes, devices or options disagree or a logG is above
 *   0 (that last one on webgpu only in check mode: reading values back would stall the GPU)
 * @see Buckman, Gelada and Zhang, "Symmetric Power Transformers", 2024; docs/math.md
 */
export function powerFull(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: PowerOptions & { returnFinalState: true },
): { output: Tensor; finalState: State };
export function powerFull(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options?: PowerOptions & { returnFinalState?: false },
): Tensor;
export function powerFull(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options?: PowerOptions,
): Tensor | { output: Tensor; finalState: State };
export function powerFull(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: PowerOptions = {},
): Tensor | { output: Tensor; finalState: State } {
  const { plan, device } = planPower("powerFull", q, k, v, options);
  const logG = options.logG?.contiguous();
  if (logG) checkGates("powerFull", logG);
  const { initialState } = options;
  const inputs = {
    q: innermost(q),
    k: innermost(k),
    v: innermost(v),
    logG,
    initialState: initialState && { s: initialState.s.contiguous(), z: initialState.z.contiguous() },
  };
  const { output, finalState, saved } = powerForward(device, plan, inputs);
  const all = [inputs.q, inputs.k, inputs.v, logG, inputs.initialState?.s, inputs.initialState?.z].filter(
    (tensor) => tensor !== undefined,
  );
  const outputs = finalState ? [output, finalState.s, finalState.z] : [output];
  record("powerFull", all, outputs, [...all, output, ...saved], ([dOutput, dS, dZ], saved) => {
    const kept = [...saved];
    const [qs, ks, vs] = kept.splice(0, 3);
    const gates = plan.gated ? kept.shift() : undefined;
    const state = plan.hasInitialState ? { s: kept.shift()!, z: kept.shift()! } : undefined;
    const out = kept.shift()!;
    const grads = powerBackward(device, plan, { q: qs, k: ks, v: vs, logG: gates, initialState: state }, out, kept, {
      output: toUpstream(dOutput, out.dtype),
      finalState: { s: toUpstream(dS, "f32"), z: toUpstream(dZ, "f32") },
    });
    return [
      grads.q,
      grads.k,
      grads.v,
      ...(plan.gated ? [grads.logG] : []),
      ...(plan.hasInitialState ? [grads.initialState?.s, grads.initialState?.z] : []),
    ];
  });
  for (const tensor of saved) tensor.dispose();
  return finalState ? { output, finalState } : output;
}

/** Another name of `powerFull`. */
export const powerAttention = powerFull;
