import { DTYPE_BYTES, type DType } from "../../tensor/dtype.js";
import type { Tensor } from "../../tensor/tensor.js";

/** Values that a wide binding moves at a time: 16 bytes of a half format, 32 of f32. */
export const WIDE = 8;

export const EIGHT = "struct Eight { a: vec4f, b: vec4f }";

/**
 * WGSL of a wide binding, of a float dtype: `load8_x(i)` gives the values i … i + 7 as `Eight { a, b }` (two vec4f), and `store8_x(i, a, b)`
 * writes them. i counts elements from the tensor's first one and is a multiple of 8.
 */
export function wideAccessors(
  name: string,
  dtype: DType,
  variable: (type: string) => string,
  origin: string,
  written: boolean,
): string {
  if (dtype === "f32") {
    const at = `let at = (${origin} + i) >> 2u;`;
    return `
${variable("vec4f")}
fn load8_${name}(i: u32) -> Eight { ${at} return Eight(${name}[at], ${name}[at + 1u]); }${
      written
        ? `
fn store8_${name}(i: u32, a: vec4f, b: vec4f) { ${at} ${name}[at] = a; ${name}[at + 1u] = b; }`
        : ""
    }`;
  }
  return `
${variable("vec4<u32>")}
fn load8_${name}(i: u32) -> Eight {
  let words = ${name}[(${origin} + i) >> 3u];
  return Eight(
    vec4f(value_${dtype}(words.x, 0u), value_${dtype}(words.x, 1u), value_${dtype}(words.y, 0u), value_${dtype}(words.y, 1u)),
    vec4f(value_${dtype}(words.z, 0u), value_${dtype}(words.z, 1u), value_${dtype}(words.w, 0u), value_${dtype}(words.w, 1u)),
  );
}${
    written
      ? `
fn store8_${name}(i: u32, a: vec4f, b: vec4f) {
  ${name}[(${origin} + i) >> 3u] = vec4<u32>(
    bits_${dtype}(a.x) | (bits_${dtype}(a.y) << 16u), bits_${dtype}(a.z) | (bits_${dtype}(a.w) << 16u),
    bits_${dtype}(b.x) | (bits_${dtype}(b.y) << 16u), bits_${dtype}(b.z) | (bits_${dtype}(b.w) << 16u));
}`
      : ""
  }`;
}

/** Whether a tensor's first element lies where a wide binding can begin. */
export function startsWide(x: Tensor): boolean {
  const { byteOffset } = x.storage as unknown as { byteOffset: number };
  return (byteOffset + x.offset * DTYPE_BYTES[x.dtype]) % (WIDE * 2) === 0;
}

/** Whether rows of `width` of a contiguous tensor can be read and written eight values at a time. */
export function rowsAreWide(width: number, ...tensors: (Tensor | undefined)[]): boolean {
  return width % WIDE === 0 && tensors.every((x) => x === undefined || startsWide(x));
}

/** The same of a tensor whose rows are its last axis, whatever the strides of the others. */
export function rowsBeginWide(x: Tensor): boolean {
  return rowsAreWide(x.shape[x.shape.length - 1], x) && x.strides.slice(0, -1).every((stride) => stride % WIDE === 0);
}
