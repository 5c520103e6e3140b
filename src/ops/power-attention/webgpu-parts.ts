import { webgpuDevice } from "../../devices/webgpu/device.js";
import { noGrad } from "../../tensor/tape.js";
import { scope, type Tensor } from "../../tensor/tensor.js";
import type { ChunkStates } from "../chunk-state/contract.js";
import type { SequencePlan } from "./contract.js";

/** Most bytes of chunk states alive at once; beyond it the sequence is taken in parts. */
const STATES_BUDGET = 2 ** 30;

/** A part of a call: whole sequences, or a run of chunks of a single one. */
export interface Part<P extends SequencePlan = SequencePlan> {
  batch: [number, number];
  time: [number, number];
  chunks: [number, number];
  plan: P;
}

/** Parts whose states, of `chunkBytes` a chunk, fit both the budget and one binding (but one chunk at least), in the order of time. */
export function partsOf<P extends SequencePlan>(plan: P, chunkBytes: number, like: Tensor): Part<P>[] {
  const { batch, time, chunks, chunkSize } = plan;
  const limit = Math.min(STATES_BUDGET, webgpuDevice(like).gpu.limits.maxStorageBufferBindingSize);
  if (batch * chunks * chunkBytes <= limit) {
    return [{ batch: [0, batch], time: [0, time], chunks: [0, chunks], plan }];
  }
  const run = Math.max(1, Math.floor(limit / chunkBytes));
  const parts: Part<P>[] = [];
  for (let b = 0; b < batch; b++) {
    for (let c = 0; c < chunks; c += run) {
      const end = Math.min(c + run, chunks);
      const range: [number, number] = [c * chunkSize, Math.min(end * chunkSize, time)];
      const part = { ...plan, batch: 1, time: range[1] - range[0], chunks: end - c };
      parts.push({ batch: [b, b + 1], time: range, chunks: [c, end], plan: part });
    }
  }
  return parts;
}

/** A part's share of a tensor [B, T, …]. */
export function take<X extends Tensor | undefined>(x: X, { batch, time }: Part): X {
  return x && (x.slice(0, ...batch).slice(1, ...time) as X);
}

/** A part's share of chunk states' s and z, [B, N, …]: contiguous as it lies. */
export function takeChunks({ s, z }: ChunkStates, { batch, chunks }: Part): ChunkStates {
  const own = (x: Tensor) => x.slice(0, ...batch).slice(1, ...chunks);
  return { s: own(s), z: own(z) };
}

/** Does work that fills what it is given, part by part, and frees what each leaves. */
export function eachPart<P extends SequencePlan>(parts: readonly Part<P>[], work: (part: Part<P>) => void): void {
  for (const part of parts) noGrad(() => scope(() => work(part)));
}
