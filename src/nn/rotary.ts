import type { Device } from "../devices/device.js";
import { rotary, rotaryAngles } from "../ops/rotary/index.js";
import { fromValues, type Tensor } from "../tensor/tensor.js";

/**
 * Rotary positions: turns q and k so that their product depends on distance. The angles of the last range of positions
 * are kept: training asks for the same ones each time, and while writing all layers ask for those of one token.
 */
export class RotaryEmbedding {
  #kept: { both: Tensor; cos: Tensor; sin: Tensor; start: number; time: number } | undefined;

  constructor(
    readonly headDim: number,
    private readonly device: Device,
    readonly base = 10000,
  ) {
    if (headDim % 2 !== 0) {
      throw new RangeError(
        `RotaryEmbedding: headSize must be even, got ${headDim}; use positions "learned" or another size`,
      );
    }
  }

  /**
   * Angles of positions start … start + time − 1: cosines and sines [time, headDim / 2], and both as one tensor [2, time,
   * headDim / 2]. Asked for before other work is queued, they need not wait for it.
   */
  angles(start: number, time: number): { both: Tensor; cos: Tensor; sin: Tensor } {
    if (this.#kept?.start !== start || this.#kept.time !== time) {
      this.dispose();
      const { cos, sin } = rotaryAngles(this.headDim, start, time, this.base);
      const values = new Float32Array(2 * cos.length);
      values.set(cos);
      values.set(sin, cos.length);
      this.#kept = this.#views(fromValues(this.device, values, [2, time, this.headDim / 2], "f32").keep(), start);
    }
    return this.#kept;
  }

  /** Runs `run` with the angles of positions `start` … in a tensor like `both`, whose contents may be others later. */
  using<T>(both: Tensor, start: number, run: () => T): T {
    const kept = this.#kept;
    this.#kept = this.#views(both, start);
    try {
      return run();
    } finally {
      for (const half of [this.#kept.cos, this.#kept.sin]) half.dispose();
      this.#kept = kept;
    }
  }

  #views(both: Tensor, start: number) {
    const time = both.shape[1];
    const half = (n: number) =>
      both
        .slice(0, n, n + 1)
        .reshape([time, this.headDim / 2])
        .keep();
    return { both, cos: half(0), sin: half(1), start, time };
  }

  /**
   * @param x [B, T, heads, headDim]
   * @param start position of the first token; default 0
   */
  apply(x: Tensor, start = 0): Tensor {
    const { cos, sin } = this.angles(start, x.shape[1]);
    return rotary(x, cos, sin);
  }

  dispose(): void {
    const { both, cos, sin } = this.#kept ?? {};
    for (const tensor of [both, cos, sin]) tensor?.dispose();
    this.#kept = undefined;
  }
}
