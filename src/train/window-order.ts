import { Generator } from "../tensor/random.js";

/**
 * The windows of a token file in random order, each once an epoch, without a list of them: window number `position` is
 * a pure function of the seed, so a position is all that a resumed run needs.
 */
export class WindowOrder {
  readonly windows: number;

  /**
   * @param tokens in the file
   * @param length of a window, its last target included
   * @throws RangeError where the file is shorter than a window
   */
  constructor(
    private readonly tokens: number,
    private readonly length: number,
    private readonly seed: number,
  ) {
    // Neighbours share a token: the last target of one is the first input of the next.
    this.windows = Math.floor((tokens - 1) / (length - 1));
    if (this.windows < 1) {
      throw new RangeError(
        `train: a context of ${length - 1} needs at least ${length} tokens, the data has ${tokens}; shorten contextLength or prepare more text`,
      );
    }
  }

  /** Where window number `position` (counted over all epochs) starts. */
  start(position: number): number {
    const epoch = Math.floor(position / this.windows);
    const generator = new Generator((Math.imul(this.seed, 0x9e3779b1) + epoch) | 0);
    const slack = this.tokens - 1 - this.windows * (this.length - 1);
    const offset = generator.integer(slack + 1);
    const keys = Array.from({ length: 4 }, () => generator.bits());
    return offset + permuted(position % this.windows, this.windows, keys) * (this.length - 1);
  }
}

/** A pseudorandom permutation of 0 … n − 1: a Feistel network over the next even power of two, walked until inside. */
function permuted(index: number, n: number, keys: readonly number[]): number {
  const bits = Math.max(1, Math.ceil(Math.log2(n) / 2));
  const mask = 2 ** bits - 1;
  let value = index;
  do {
    let left = Math.floor(value / (mask + 1));
    let right = value & mask;
    for (const key of keys) {
      let mixed = Math.imul(right ^ key, 0x85ebca6b);
      mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
      [left, right] = [right, (left ^ (mixed >>> 7)) & mask];
    }
    value = left * (mask + 1) + right;
  } while (value >= n);
  return value;
}
