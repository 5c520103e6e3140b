/** Every block starts on a cache line. */
const ALIGNMENT = 64;

interface Block {
  start: number;
  size: number;
}

/**
 * Hands out blocks of an address range that may grow: best fit, neighbours joined when freed.
 * Addresses only; the memory itself belongs to the device.
 */
export class Heap {
  /** Free blocks by address, never adjacent. */
  readonly #free: Block[] = [];
  readonly #sizes = new Map<number, number>();
  #used = 0;
  peak = 0;

  /** @param grow makes at least `bytes` more room at the end, and says how much it made, or 0 where it can't. */
  constructor(
    private start: number,
    end: number,
    private readonly grow: (bytes: number) => number,
  ) {
    this.start = Math.ceil(start / ALIGNMENT) * ALIGNMENT;
    this.#insert({ start: this.start, size: end - this.start });
    this.end = end;
  }

  private end: number;

  get used(): number {
    return this.#used;
  }

  /** The start of a block of `bytes`, or undefined where there is no room. */
  allocate(bytes: number): number | undefined {
    const size = Math.max(1, Math.ceil(bytes / ALIGNMENT)) * ALIGNMENT;
    let block = this.#bestFit(size);
    if (!block) {
      const last = this.#free.at(-1);
      const tail = last && last.start + last.size === this.end ? last.size : 0;
      const grown = this.grow(size - tail);
      if (grown === 0) return undefined;
      this.#insert({ start: this.end, size: grown });
      this.end += grown;
      block = this.#bestFit(size);
      if (!block) return undefined;
    }
    const address = block.start;
    block.start += size;
    block.size -= size;
    if (block.size === 0) this.#free.splice(this.#free.indexOf(block), 1);
    this.#sizes.set(address, size);
    this.#used += size;
    this.peak = Math.max(this.peak, this.#used);
    return address;
  }

  free(address: number): void {
    const size = this.#sizes.get(address);
    if (size === undefined) throw new Error(`Heap.free: no block starts at ${address}`);
    this.#sizes.delete(address);
    this.#used -= size;
    this.#insert({ start: address, size });
  }

  #bestFit(size: number): Block | undefined {
    let best: Block | undefined;
    for (const block of this.#free) if (block.size >= size && (!best || block.size < best.size)) best = block;
    return best;
  }

  #insert(block: Block): void {
    if (block.size <= 0) return;
    let low = 0;
    let high = this.#free.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#free[middle].start < block.start) low = middle + 1;
      else high = middle;
    }
    const before = this.#free[low - 1];
    const after = this.#free[low];
    const joinsBefore = before && before.start + before.size === block.start;
    const joinsAfter = after && block.start + block.size === after.start;
    if (joinsBefore && joinsAfter) {
      before.size += block.size + after.size;
      this.#free.splice(low, 1);
    } else if (joinsBefore) before.size += block.size;
    else if (joinsAfter) {
      after.start = block.start;
      after.size += block.size;
    } else this.#free.splice(low, 0, block);
  }
}
