/** GPU time of what ran under `WebGpuDevice.profile`. */
export interface GpuProfile {
  /** From the beginning of the first dispatch to the end of the last, in milliseconds. */
  gpuMs: number;
  /** Dispatches by kernel, longest first; `ms` is the sum of their own times. */
  kernels: { name: string; count: number; ms: number }[];
}

/** Marks in one query set: WebGPU's limit. */
const MARKS = 4096;
const USAGE_RESOLVE = 0x200 | 0x04; // QUERY_RESOLVE | COPY_SRC
const USAGE_READ = 0x01 | 0x08; // MAP_READ | COPY_DST

/** Timestamps around dispatches, two for each. */
export class Profile {
  readonly #sets: GPUQuerySet[] = [];
  readonly #names: string[] = [];

  constructor(private readonly gpu: GPUDevice) {}

  mark(name: string): GPUComputePassTimestampWrites {
    const at = (2 * this.#names.length) % MARKS;
    if (at === 0) this.#sets.push(this.gpu.createQuerySet({ type: "timestamp", count: MARKS }));
    this.#names.push(name);
    return { querySet: this.#sets[this.#sets.length - 1], beginningOfPassWriteIndex: at, endOfPassWriteIndex: at + 1 };
  }

  /** Reads the timestamps of submitted work. */
  async result(): Promise<GpuProfile> {
    const nanoseconds: bigint[] = [];
    for (const [k, set] of this.#sets.entries()) {
      const count = Math.min(2 * this.#names.length - k * MARKS, MARKS);
      const resolved = this.gpu.createBuffer({ size: 8 * MARKS, usage: USAGE_RESOLVE });
      const landing = this.gpu.createBuffer({ size: 8 * MARKS, usage: USAGE_READ });
      const encoder = this.gpu.createCommandEncoder();
      encoder.resolveQuerySet(set, 0, count, resolved, 0);
      encoder.copyBufferToBuffer(resolved, 0, landing, 0, 8 * count);
      this.gpu.queue.submit([encoder.finish()]);
      await landing.mapAsync(1);
      nanoseconds.push(...new BigInt64Array(landing.getMappedRange(), 0, count));
      landing.destroy();
      resolved.destroy();
      set.destroy();
    }
    const kernels = new Map<string, { name: string; count: number; ms: number }>();
    for (const [k, name] of this.#names.entries()) {
      const entry = kernels.get(name) ?? { name, count: 0, ms: 0 };
      entry.count++;
      entry.ms += Number(nanoseconds[2 * k + 1] - nanoseconds[2 * k]) / 1e6;
      kernels.set(name, entry);
    }
    const last = nanoseconds.length - 1;
    return {
      gpuMs: last < 0 ? 0 : Number(nanoseconds[last] - nanoseconds[0]) / 1e6,
      kernels: [...kernels.values()].sort((a, b) => b.ms - a.ms),
    };
  }
}
