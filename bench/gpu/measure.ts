import type { WebGpuDevice } from "../../src/devices/webgpu/device.js";
import type { KernelTime } from "../context.js";
import { type Timing, timing } from "../measure.js";

/** The same call by two clocks. */
export interface GpuTiming {
  /** From the call to its end on the GPU, by the host's clock. */
  wall: Timing;
  /** From the first kernel's beginning to the last one's end, by timestamps; undefined where there are none. */
  gpu?: Timing;
  /** Milliseconds inside kernels, of the same call as `kernels`: what is missing to `gpu` is waiting between them. */
  busy?: number;
  /** Of the profiled call whose time is the median's. */
  kernels: KernelTime[];
}

/** Calls that take long are repeated only as often as this allows, but three times at least; those of SLOW_MS once. */
const MOST_MS = 20_000;
const SLOW_MS = 8_000;
/** A GPU that waited is slow for longer than one would think: at a fifth of a second some of an H200's kernels took twice their time. */
export const WARM_MS = 1_000;

/**
 * Warms up, then times `run` (which may return before the GPU is done) by the host's clock, and again by timestamps.
 * @param rounds timed calls of each kind; default 20
 */
export async function measureGpu(
  device: WebGpuDevice,
  run: () => void | Promise<void>,
  { rounds = 20 }: { rounds?: number } = {},
): Promise<GpuTiming> {
  const once = async () => {
    const start = performance.now();
    await run();
    await device.sync();
    return performance.now() - start;
  };
  let last = await once(); // compiles
  if (last > SLOW_MS) last = await once();
  const slow = last > SLOW_MS;
  const began = performance.now();
  for (let k = 1; (k < 3 && !slow) || (rounds > 5 && performance.now() - began < WARM_MS); k++) last = await once();
  const count = last > SLOW_MS ? 1 : Math.max(3, Math.min(rounds, Math.ceil(MOST_MS / last)));
  const wall: number[] = [];
  while (wall.length < count) wall.push(await once());
  if (!device.gpu.features.has("timestamp-query")) return { wall: timing(wall), kernels: [] };
  const profiles: { gpuMs: number; kernels: KernelTime[] }[] = [];
  if (!slow) await device.profile(run); // a first one pays for what it sets up
  while (profiles.length < count) profiles.push(await device.profile(run));
  profiles.sort((a, b) => a.gpuMs - b.gpuMs);
  const kernels = [...profiles[profiles.length >> 1].kernels].sort((a, b) => b.ms - a.ms);
  const busy = kernels.reduce((sum, { ms }) => sum + ms, 0);
  return { wall: timing(wall), gpu: timing(profiles.map(({ gpuMs }) => gpuMs)), busy, kernels };
}
