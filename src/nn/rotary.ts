import type { Device } from "../devices/device.js";
import { rotary, rotaryAngles } from "../ops/rotary/index.js";
import { fromValues, type Tensor } from "../tensor/tensor.js";

/** Rotary positions: turns q and k so that their product depends on distance. Tables are made once and grow. */
export class RotaryEmbedding {
  #tables: { cos: Tensor; sin: Tensor; time: number } | undefined;

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
   * @param x [B, T, heads, headDim]
   * @param start position of the first token; default 0
   */
  apply(x: Tensor, start = 0): Tensor {
    const end = start + x.shape[1];
    if (!this.#tables || this.#tables.time < end) this.#grow(end);
    const { cos, sin } = this.#tables!;
    return rotary(x, cos.slice(0, start, end), sin.slice(0, start, end));
  }

  #grow(needed: number): void {
    this.dispose();
    const time = 2 ** Math.ceil(Math.log2(Math.max(needed, 64)));
    const { cos, sin } = rotaryAngles(this.headDim, 0, time, this.base);
    const table = (values: Float32Array) => fromValues(this.device, values, [time, this.headDim / 2], "f32").keep();
    this.#tables = { cos: table(cos), sin: table(sin), time };
  }

  dispose(): void {
    this.#tables?.cos.dispose();
    this.#tables?.sin.dispose();
    this.#tables = undefined;
  }
}
