/** Storage formats. Arithmetic is float32 inside whatever the storage is (float64 on the oracle). */
export type DType = "f32" | "f16" | "bf16" | "i32";

/** What `await tensor.data()` gives: half formats arrive widened, the oracle's values in double precision. */
export type TypedArray = Float32Array | Float64Array | Int32Array;

export const DTYPE_BYTES: Record<DType, number> = { f32: 4, f16: 2, bf16: 2, i32: 4 };

const scratch = new DataView(new ArrayBuffer(4));

/** Round to bfloat16, ties to even; the result is its 16 bits. */
export function toBF16Bits(value: number): number {
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  if ((bits & 0x7fffffff) > 0x7f800000) return ((bits >>> 16) | 0x40) & 0xffff; // keep a NaN a NaN
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

export function fromBF16Bits(bits: number): number {
  scratch.setUint32(0, bits << 16);
  return scratch.getFloat32(0);
}

/** Round a float32 value to IEEE binary16, ties to even; the result is its 16 bits. */
export function toF16Bits(value: number): number {
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // rounds to 65536 or more: infinity
  if (magnitude < 0x38800000) {
    // Subnormal: adding 0.5 leaves round(|value| · 2^24) in the low bits of the sum.
    scratch.setUint32(0, magnitude);
    scratch.setFloat32(0, scratch.getFloat32(0) + 0.5);
    return sign | (scratch.getUint32(0) - 0x3f000000);
  }
  const rounded = magnitude + 0xfff + ((magnitude >>> 13) & 1);
  return sign | ((rounded - 0x38000000) >>> 13);
}

export function fromF16Bits(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 31;
  const fraction = bits & 0x3ff;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** The value that storing `value` as `dtype` and reading it back gives. */
export function roundTo(dtype: DType, value: number): number {
  switch (dtype) {
    case "f32":
      return Math.fround(value);
    case "bf16":
      return fromBF16Bits(toBF16Bits(value));
    case "f16":
      return fromF16Bits(toF16Bits(value));
    case "i32":
      return value | 0;
  }
}
