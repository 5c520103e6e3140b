const USAGE_STORAGE = 0x80 | 0x04 | 0x08; // STORAGE | COPY_SRC | COPY_DST

/** The size of the buffer that serves a request: a power of two or one of three sizes between, so that at most a fifth is lost. */
export function poolSize(bytes: number): number {
  if (bytes <= 256) return 256;
  const step = 2 ** Math.max(8, Math.floor(Math.log2(bytes - 1)) - 2);
  return Math.ceil(bytes / step) * step;
}

/** Buffers that recorded work goes on using after the tensors that took them are gone. */
export class HeldBuffers {
  readonly all = new Set<GPUBuffer>();
  /** Those of no tensor: they serve again while work is recorded, as it ran. */
  readonly idle: GPUBuffer[] = [];

  take(size: number): GPUBuffer | undefined {
    const at = this.idle.findIndex((buffer) => buffer.size === size);
    return at < 0 ? undefined : this.idle.splice(at, 1)[0];
  }
}

/**
 * Storage buffers, reused by size: WebGPU frees memory far too late by itself. A buffer may be handed out again while
 * work on its old contents is still queued, because what comes later in the queue runs later.
 */
export class BufferPool {
  /**
   * By size, the first made last: it is handed out first, so that the same calls get the same buffers each time, whatever the
   * order in which they gave them back, and what binds them can be kept.
   */
  readonly #free = new Map<number, GPUBuffer[]>();
  /** All that exist, free or in use, numbered. */
  readonly #owned = new Map<GPUBuffer, number>();
  readonly #held = new Map<GPUBuffer, HeldBuffers>();
  #holding: HeldBuffers | undefined;
  #made = 0;
  #used = 0;
  #reserved = 0;
  peak = 0;

  constructor(private readonly create: (size: number, usage: number) => GPUBuffer) {}

  get used(): number {
    return this.#used;
  }

  get reserved(): number {
    return this.#reserved;
  }

  /** A number that no other buffer has or had, or undefined for a buffer that is not the pool's. */
  numberOf(buffer: GPUBuffer): number | undefined {
    return this.#owned.get(buffer);
  }

  /** Bytes of `size` that would be new: 0 where a free buffer fits. */
  wants(size: number): number {
    return this.#free.get(size)?.length ? 0 : size;
  }

  take(size: number): GPUBuffer {
    let buffer = this.#holding?.take(size) ?? this.#free.get(size)?.pop();
    if (!buffer) {
      buffer = this.create(size, USAGE_STORAGE);
      this.#reserved += size;
      this.#owned.set(buffer, this.#made++);
    }
    if (this.#holding) {
      this.#holding.all.add(buffer);
      this.#held.set(buffer, this.#holding);
    }
    this.#used += size;
    this.peak = Math.max(this.peak, this.#used);
    return buffer;
  }

  /** Buffers taken while `run` runs stay out of the pool, whoever gives them back, until they are released. */
  hold<T>(run: () => T): { result: T; held: HeldBuffers } {
    const held = new HeldBuffers();
    this.#holding = held;
    try {
      return { result: run(), held };
    } catch (error) {
      this.release(held);
      throw error;
    } finally {
      this.#holding = undefined;
    }
  }

  release({ all, idle }: HeldBuffers): void {
    for (const buffer of all) this.#held.delete(buffer);
    all.clear();
    for (const buffer of idle.splice(0)) this.#keep(buffer);
  }

  give(buffer: GPUBuffer): void {
    this.#used -= buffer.size;
    const held = this.#held.get(buffer);
    if (held) held.idle.push(buffer);
    else this.#keep(buffer);
  }

  #keep(buffer: GPUBuffer): void {
    const number = this.#owned.get(buffer);
    if (number === undefined) return;
    const same = this.#free.get(buffer.size);
    if (!same) {
      this.#free.set(buffer.size, [buffer]);
      return;
    }
    let at = same.length;
    while (at > 0 && this.#owned.get(same[at - 1])! < number) at--;
    same.splice(at, 0, buffer);
  }

  /** Forgets a buffer that the GPU had no memory for: WebGPU says so later, and it stays invalid for ever. */
  refuse(buffer: GPUBuffer): void {
    if (!this.#owned.delete(buffer)) return;
    this.#reserved -= buffer.size;
    const same = this.#free.get(buffer.size);
    if (same?.includes(buffer)) same.splice(same.indexOf(buffer), 1);
  }

  /** Destroys the free buffers. Work that uses them must have been submitted. */
  trim(): void {
    for (const buffers of this.#free.values()) {
      for (const buffer of buffers) {
        this.#reserved -= buffer.size;
        this.#owned.delete(buffer);
        buffer.destroy();
      }
    }
    this.#free.clear();
  }
}
