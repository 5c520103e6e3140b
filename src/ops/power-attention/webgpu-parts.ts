import { webgpuDevice } from "../../devices/webgpu/device.js";
import { noGrad } from "../../tensor/tape.js";
import { scope, type Tensor } from "../../tensor/tensor.js";
import type { ChunkStates } from "../chunk-state/contract.js";
import type { SequencePlan } from "./contract.js";

/** Most bytes of chunk states alive at once; beyond it the sequence is taken in parts. */
const STATES_BUDGET = 2 ** 31;

/** A part of a call: whole sequences, or a run of chunks of a single one. */
export interface Part<P extends SequencePlan = SequencePlan> {
  batch: [number, number];
  time: [number, number];
  chunks: [number, number];
  plan: P;
}

/**
 * Parts whose states, of `chunkBytes` a chunk, fit both the budget and one binding (but one chunk at least), in the order of
 * time: as many whole sequences as fit, or where none does, one sequence after the other in runs of chunks.
 */
export function partsOf<P extends SequencePlan>(plan: P, chunkBytes: number, like: Tensor): Part<P>[] {
  const { batch, time, chunks, chunkSize } = plan;
  const limit = Math.min(STATES_BUDGET, webgpuDevice(like).gpu.limits.maxStorageBufferBindingSize);
  const most = chunkBytes > 0 ? Math.floor(limit / chunkBytes) : Number.POSITIVE_INFINITY;
  if (batch * chunks <= most) return [{ batch: [0, batch], time: [0, time], chunks: [0, chunks], plan }];
  const parts: Part<P>[] = [];
  // Of about the same size: a small part at the end would leave a GPU idle.
  const even = (count: number, limit: number) => Math.ceil(count / Math.ceil(count / Math.max(1, limit)));
  const sequences = even(batch, Math.floor(most / chunks));
  const run = even(chunks, most);
  for (let b = 0; b < batch; b += sequences) {
    const last = Math.min(b + sequences, batch);
    for (let c = 0; c < chunks; c += run) {
      const end = Math.min(c + run, chunks);
      const range: [number, number] = [c * chunkSize, Math.min(end * chunkSize, time)];
      const part = { ...plan, batch: last - b, time: range[1] - range[0], chunks: end - c };
      parts.push({ batch: [b, last], time: range, chunks: [c, end], plan: part });
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
