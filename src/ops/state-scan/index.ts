import { record } from "../../tensor/tape.js";
import { isTensor, type Tensor } from "../../tensor/tensor.js";
import type { ChunkStates } from "../chunk-state/contract.js";
import { operation } from "../operation.js";
import {
  checkDevices,
  checkF32,
  checkGates,
  checkLogG,
  checkOptionNames,
  checkPositiveInteger,
  checkShapeIs,
  checkTensor,
  show,
} from "../power-attention/checks.js";
import type { State } from "../power-attention/contract.js";
import { toUpstream } from "../power-attention/views.js";
import type { ScanPlan, StateScanBackward, StateScanForward, StateScanResult } from "./contract.js";
import { stateScanOracle, stateScanOracleBackward } from "./oracle.js";
import { stateScanWasm, stateScanWasmBackward } from "./wasm.js";
import { stateScanBackwardWebGpu, stateScanWebGpu } from "./webgpu.js";

export const stateScanForward = operation<Parameters<StateScanForward>, StateScanResult>("stateScan", {
  oracle: stateScanOracle,
  wasm: stateScanWasm,
  webgpu: stateScanWebGpu,
});

export const stateScanBackward = operation<Parameters<StateScanBackward>, ReturnType<StateScanBackward>>(
  "stateScan backward",
  { oracle: stateScanOracleBackward, wasm: stateScanWasmBackward, webgpu: stateScanBackwardWebGpu },
);

interface ScanOptions {
  logG?: Tensor;
  chunkSize?: number;
  initialState?: State;
}

export function checkChunkStates(caller: string, states: unknown): asserts states is ChunkStates {
  if (states === null || typeof states !== "object" || isTensor(states)) {
    throw new TypeError(`${caller}: states must be { s, z }, got ${show(states)}; pass what chunkState returns`);
  }
  const { s, z } = states as Partial<ChunkStates>;
  for (const [name, tensor] of Object.entries({ "states.s": s, "states.z": z })) {
    checkTensor(caller, name, tensor);
    checkF32(caller, name, tensor);
  }
  if (s!.shape.length !== 5 || s!.shape.slice(2).some((extent) => extent < 1)) {
    throw new RangeError(
      `${caller}: states.s must have shape [batch, chunks, heads, expandedDim, valueDim], got [${s!.shape.join(", ")}]; reshape it`,
    );
  }
  checkShapeIs(caller, "states.z", z!, s!.shape.slice(0, 4), "states.s without its last axis");
}

function planScan(states: ChunkStates, { logG, chunkSize, initialState }: ScanOptions): ScanPlan {
  const caller = "stateScan";
  checkChunkStates(caller, states);
  const [batch, chunks, heads, expandedDim, valueDim] = states.s.shape;
  let time = 0;
  if (logG) {
    checkTensor(caller, "logG", logG);
    checkPositiveInteger(caller, "chunkSize", chunkSize, "with logG, pass the one that made the chunks");
    time = logG.shape[1] ?? 0;
    checkLogG(caller, logG, [batch, time, heads]);
    if (Math.ceil(time / chunkSize!) !== chunks) {
      throw new RangeError(
        `stateScan: states must have ceil(time / chunkSize) chunks, got ${chunks} for time ${time} and chunkSize ${chunkSize}; ` +
          "pass the chunkSize that made them",
      );
    }
  }
  if (initialState) {
    const { s, z } = initialState;
    for (const [name, tensor] of Object.entries({ "initialState.s": s, "initialState.z": z })) {
      checkTensor(caller, name, tensor);
      checkF32(caller, name, tensor);
    }
    checkShapeIs(caller, "initialState.s", s, [batch, heads, expandedDim, valueDim], "states.s without its chunk axis");
    checkShapeIs(caller, "initialState.z", z, [batch, heads, expandedDim], "states.z without its chunk axis");
  }
  return {
    batch,
    time,
    heads,
    expandedDim,
    valueDim,
    chunks,
    chunkSize: chunkSize ?? 1,
    gated: logG !== undefined,
    hasInitialState: initialState !== undefined,
  };
}

/**
 * Carries states over chunks: entering[0] = initialState or 0, entering[c + 1] = exp(G_end of c) · entering[c] + states[c],
 * where G_end is the sum of logG over chunk c. The final state is what would enter the next chunk. Differentiable.
 *
 * @param states s [B, N, H, D, e] and z [B, N, H, D], f32, as `chunkState` makes them
 * @param options.logG [B, T, H] f32, at most 0; default no decay
 * @param options.chunkSize needed with logG: the one that made the chunks, N = ceil(T / chunkSize)
 * @param options.initialState s [B, H, D, e] and z [B, H, D], f32; default zero
 * @returns entering, shaped as `states`; finalState, shaped as initialState; all f32
 * @throws RangeError or TypeError where shapes, dtypes, devices or options disagree
 */
export function stateScan(states: ChunkStates, options: ScanOptions = {}): StateScanResult {
  const caller = "stateScan";
  checkOptionNames(caller, options, ["logG", "chunkSize", "initialState"]);
  const plan = planScan(states, options);
  const { initialState } = options;
  const device = checkDevices(caller, {
    "states.s": states.s,
    "states.z": states.z,
    logG: options.logG,
    "initialState.s": initialState?.s,
    "initialState.z": initialState?.z,
  });
  const logG = options.logG?.contiguous();
  if (logG) checkGates(caller, logG);
  const inputs = {
    states: { s: states.s.contiguous(), z: states.z.contiguous() },
    logG,
    initialState: initialState && { s: initialState.s.contiguous(), z: initialState.z.contiguous() },
  };
  const out = stateScanForward(device, plan, inputs);
  const { entering, finalState } = out;
  record(
    caller,
    [
      inputs.states.s,
      inputs.states.z,
      ...(logG ? [logG] : []),
      ...(inputs.initialState ? [inputs.initialState.s, inputs.initialState.z] : []),
    ],
    [entering.s, entering.z, finalState.s, finalState.z],
    [entering.s, entering.z, ...(logG ? [logG] : [])],
    (grads, saved) => {
      const [s, z, finalS, finalZ] = grads.map((grad) => toUpstream(grad, "f32"));
      const back = stateScanBackward(
        device,
        plan,
        { entering: { s: saved[0], z: saved[1] }, logG: saved[2] },
        { entering: { s, z }, finalState: { s: finalS, z: finalZ } },
      );
      return [back.states.s, back.states.z, ...(logG ? [back.logG] : []), back.initialState?.s, back.initialState?.z];
    },
  );
  return out;
}
