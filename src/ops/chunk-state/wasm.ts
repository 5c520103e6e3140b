import { wasmDevice } from "../../devices/wasm/device.js";
import { empty } from "../../tensor/tensor.js";
import type { SequencePlan } from "../power-attention/contract.js";
import { runBackward, runForward, wholeState } from "../power-attention/wasm/run.js";
import type { ChunkStateBackward, ChunkStateForward } from "./contract.js";

function shapes({ batch, chunks, heads, expandedDim, valueDim }: SequencePlan) {
  return { s: [batch, chunks, heads, expandedDim, valueDim], z: [batch, chunks, heads, expandedDim] };
}

const WHAT = { inside: false, reads: "none", normalize: "none" } as const;

export const chunkStateWasm: ChunkStateForward = (plan, inputs) => {
  const device = wasmDevice(inputs.k);
  const { s, z } = shapes(plan);
  const to = { s: empty(s, device, "f32"), z: empty(z, device, "f32") };
  runForward(device, plan, { ...WHAT, ...inputs, writes: "each", to });
  return to;
};

export const chunkStateWasmBackward: ChunkStateBackward = (plan, inputs, upstream) => {
  const { k, v, logG } = inputs;
  const device = wasmDevice(k);
  const gradients = {
    k: empty(k.shape, device, k.dtype),
    v: empty(v.shape, device, v.dtype),
    logG: logG && empty(logG.shape, device, "f32"),
  };
  const { states, made } = wholeState(device, upstream, shapes(plan));
  const writes = states ? "each" : "none";
  runBackward(device, plan, { ...WHAT, ...inputs, writes, upstream: { states }, gradients });
  for (const tensor of made) tensor.dispose();
  return gradients;
};
