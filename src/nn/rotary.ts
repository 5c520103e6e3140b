import type { Device } from "../devices/device.js";
import { rotary, rotaryAngles } from "../ops/rotary/index.js";
import { fromValues, type Tensor } from "../tensor/tensor.js";

/**
 * Rotary positions: turns q and k so that their product depends on distance. The angles of the last range of positions
 * are kept: training asks for the same ones each time, and while writing all layers ask for those of one token.
 */
export class RotaryEmbedding {
  #kept: { cos: Tensor; sin: Tensor; start: number; time: number } | undefined;

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

  /** Angles of positions start … start + time − 1. Asked for before other work is queued, they need not wait for it. */
  angles(start: number, time: number): { cos: Tensor; sin: Tensor } {
    if (this.#kept?.start !== start || this.#kept.time !== time) {
      this.dispose();
      const angles = rotaryAngles(this.headDim, start, time, this.base);
      const table = (values: Float32Array) => fromValues(this.device, values, [time, this.headDim / 2], "f32").keep();
      this.#kept = { cos: table(angles.cos), sin: table(angles.sin), start, time };
    }
    return this.#kept;
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
    this.#kept?.cos.dispose();
    this.#kept?.sin.dispose();
    this.#kept = undefined;
  }
}
