import { LINE } from "./tiles.js";

/** Lays buffers out one after another, each on a cache line, an odd number of lines long so that they don't alias. */
export class Layout {
  bytes = 0;
  take(bytes: number): number {
    const at = this.bytes;
    const lines = Math.ceil(bytes / LINE);
    this.bytes += (lines % 2 ? lines : lines + 1) * LINE;
    return at;
  }
}
