import { wasmDevice } from "../../devices/wasm/device.js";
import { empty } from "../../tensor/tensor.js";
import { runBackward, runForward } from "../power-attention/wasm/run.js";
import type { QueryStateBackward, QueryStateForward } from "./contract.js";

const WHAT = { inside: false, reads: "each", writes: "none", normalize: "none" } as const;

export const queryStateWasm: QueryStateForward = (plan, { q, states, logG }) => {
  const device = wasmDevice(q);
  const { batch, time, queryHeads, valueDim } = plan;
  const output = empty([batch, time, queryHeads, valueDim], device, "f32");
  const sum = empty([batch, time, queryHeads], device, "f32");
  runForward(device, plan, { ...WHAT, q, logG, from: states, output, rows: sum });
  return { output, sum };
};

export const queryStateWasmBackward: QueryStateBackward = (plan, { q, states, logG }, upstream) => {
  const device = wasmDevice(q);
  const gradients = {
    q: empty(q.shape, device, q.dtype),
    states: { s: empty(states.s.shape, device, "f32"), z: empty(states.z.shape, device, "f32") },
    logG: logG && empty(logG.shape, device, "f32"),
  };
  runBackward(device, plan, {
    ...WHAT,
    q,
    logG,
    from: states,
    upstream,
    gradients: { q: gradients.q, logG: gradients.logG, from: gradients.states },
  });
  return gradients;
};
