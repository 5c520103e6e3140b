import { wasmDevice } from "../../devices/wasm/device.js";
import { empty } from "../../tensor/tensor.js";
import { runBackward, runForward } from "../power-attention/wasm/run.js";
import type { ChunkAttentionBackward, ChunkAttentionForward } from "./contract.js";

const WHAT = { inside: true, reads: "none", writes: "none", normalize: "none" } as const;

export const chunkAttentionWasm: ChunkAttentionForward = (plan, inputs) => {
  const device = wasmDevice(inputs.q);
  const { batch, time, queryHeads, valueDim } = plan;
  const output = empty([batch, time, queryHeads, valueDim], device, "f32");
  const sum = empty([batch, time, queryHeads], device, "f32");
  runForward(device, plan, { ...WHAT, ...inputs, output, rows: sum });
  return { output, sum };
};

export const chunkAttentionWasmBackward: ChunkAttentionBackward = (plan, inputs, upstream) => {
  const { q, k, v, logG } = inputs;
  const device = wasmDevice(q);
  const gradients = {
    q: empty(q.shape, device, q.dtype),
    k: empty(k.shape, device, k.dtype),
    v: empty(v.shape, device, v.dtype),
    logG: logG && empty(logG.shape, device, "f32"),
  };
  runBackward(device, plan, { ...WHAT, ...inputs, upstream, gradients });
  return gradients;
};
