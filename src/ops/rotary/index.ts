import { record } from "../../tensor/tape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { operation } from "../operation.js";
import type { RotaryPlan } from "./contract.js";
import * as oracle from "./oracle.js";
import * as wasm from "./wasm.js";
import * as webgpu from "./webgpu.js";

const run = operation("rotary", { oracle: oracle.rotate, wasm: wasm.rotate, webgpu: webgpu.rotate });

/**
 * Rotates pairs of features by an angle that grows with the position, so that q·k depends on distance: feature i and
 * feature i + d/2 of the token at position t turn by t · base^(−2i/d).
 *
 * @param x [B, T, H, d], d even, a float dtype; views with any strides over a contiguous last axis are read in place
 * @param cos [T, d/2] f32, see `rotaryAngles`
 * @param sin [T, d/2] f32
 * @returns [B, T, H, d], contiguous, x's dtype
 * @throws RangeError where d is odd or shapes disagree
 * Source: Su et al. 2021, with the halves as pairs.
 */
export function rotary(x: Tensor, cos: Tensor, sin: Tensor): Tensor {
  const [batch, time, heads, headDim] = x.shape;
  if (x.shape.length !== 4 || headDim % 2 !== 0) {
    throw new RangeError(`rotary: x must have shape [B, T, H, d] with even d, got [${x.shape.join(", ")}]`);
  }
  for (const table of [cos, sin]) {
    if (table.dtype !== "f32" || table.shape.join() !== [time, headDim / 2].join()) {
      throw new RangeError(
        `rotary: cos and sin must be f32 of shape [${time}, ${headDim / 2}], got ${table.dtype} [${table.shape.join(", ")}]`,
      );
    }
  }
  const plan: RotaryPlan = { batch, time, heads, headDim, direction: 1 };
  const dense = (t: Tensor) => (t.strides[3] === 1 ? t : t.contiguous());
  const [c, s] = [cos.contiguous(), sin.contiguous()];
  const output = run(x.device, plan, dense(x), c, s);
  record("rotary", [x], [output], [c, s], ([g], tables) => [
    g && run(x.device, { ...plan, direction: -1 }, dense(g), tables[0], tables[1]),
  ]);
  return output;
}

/** cos and sin of the angles of positions start … start + time − 1, row-major [time, headDim / 2]. */
export function rotaryAngles(
  headDim: number,
  start: number,
  time: number,
  base = 10000,
): { cos: Float32Array; sin: Float32Array } {
  const half = headDim / 2;
  const cos = new Float32Array(time * half);
  const sin = new Float32Array(time * half);
  for (let i = 0; i < half; i++) {
    const rate = base ** (-i / half);
    for (let t = 0; t < time; t++) {
      cos[t * half + i] = Math.cos((start + t) * rate);
      sin[t * half + i] = Math.sin((start + t) * rate);
    }
  }
  return { cos, sin };
}
