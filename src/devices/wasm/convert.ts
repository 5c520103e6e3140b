import { DTYPE_BYTES, type DType } from "../../tensor/dtype.js";
import {
  type Expr,
  type FunctionBuilder,
  f32,
  f32x4,
  type Int,
  i16x8,
  i32,
  i32x4,
  type Local,
  v128,
} from "./emitter.js";

/**
 * Tensor elements as f32 lanes: every kernel reads and writes storage through these. Values match tensor/dtype.ts:
 * round to nearest even, subnormals kept, NaN stays NaN. Elements of i32 are converted to f32 and back (truncated).
 */

/** Locals that a conversion keeps an intermediate value in; each conversion is done with them before the next. */
const scratchLocals = new WeakMap<FunctionBuilder, [Local, Local]>();

function scratch(f: FunctionBuilder): [Local, Local] {
  let locals = scratchLocals.get(f);
  if (!locals) {
    locals = [f.local("v128"), f.local("v128")];
    scratchLocals.set(f, locals);
  }
  return locals;
}

/** The half in the low 16 bits of each i32 lane (sign-extended for f16) as f32. */
function decode(f: FunctionBuilder, dtype: "f16" | "bf16", bits: Expr): Expr {
  if (dtype === "bf16") return i32x4.shl(bits, 16);
  // Sign to bit 31, exponent and fraction where f32 has them: the value times 2^-112, subnormals included.
  const placed = v128.and(i32x4.shl(bits, 13), i32x4.const(0x8fffe000 | 0));
  const [value] = scratch(f);
  const scaled = value.tee(f32x4.mul(placed, f32x4.const(2 ** 112)));
  // Exponent 31 has become 65536 or more: infinity or NaN, which keep their fraction.
  return v128.or(scaled, v128.and(f32x4.ge(f32x4.abs(value), f32x4.const(65536)), i32x4.const(0x7f800000)));
}

/** Each f32 lane rounded to a half, as the low 16 bits of an i32 lane (the high ones are zero). */
function encode(f: FunctionBuilder, dtype: "f16" | "bf16", value: Expr): Expr {
  const [x, y] = scratch(f);
  x.set(value);
  const isNumber = f32x4.eq(x, x);
  if (dtype === "bf16") {
    const odd = v128.and(i32x4.shrU(x, 16), i32x4.const(1));
    const rounded = i32x4.shrU(i32x4.add(i32x4.add(x, i32x4.const(0x7fff)), odd), 16);
    return v128.bitselect(rounded, v128.or(i32x4.shrU(x, 16), i32x4.const(0x40)), isNumber);
  }
  // From 65520 on rounding carries into exponent 31, that is infinity; 65536 stands for all that is larger.
  y.set(f32x4.pmin(f32x4.const(65536), f32x4.abs(x)));
  const odd = v128.and(i32x4.shrU(y, 13), i32x4.const(1));
  const normal = i32x4.shrU(i32x4.add(i32x4.add(y, i32x4.const(0xfff - 0x38000000)), odd), 13);
  // Below 2^-14: adding 0.5 leaves round(|x|·2^24) in the low bits of the sum.
  const subnormal = i32x4.sub(f32x4.add(y, f32x4.const(0.5)), i32x4.const(0x3f000000));
  const finite = v128.bitselect(subnormal, normal, i32x4.lt(y, i32x4.const(0x38800000)));
  const magnitude = v128.bitselect(finite, i32x4.const(0x7e00), isNumber);
  return v128.or(magnitude, v128.and(i32x4.shrU(x, 16), i32x4.const(0x8000)));
}

/** Four consecutive elements as f32x4; the address is in bytes and needs no alignment. */
export function load4(f: FunctionBuilder, dtype: DType, address: Int, offset = 0): Expr {
  switch (dtype) {
    case "f32":
      return v128.load(address, offset);
    case "i32":
      return f32x4.fromI32(v128.load(address, offset));
    case "bf16":
      return decode(f, dtype, v128.load16x4U(address, offset));
    case "f16":
      return decode(f, dtype, v128.load16x4S(address, offset));
  }
}

/** One element as f32. */
export function load1(f: FunctionBuilder, dtype: DType, address: Int, offset = 0): Expr {
  switch (dtype) {
    case "f32":
      return f32.load(address, offset);
    case "i32":
      return f32.fromI32(i32.load(address, offset));
    case "bf16":
      return f32.fromBits(i32.shl(i32.load16U(address, offset), 16));
    case "f16": {
      const signExtended = i32.shr(i32.shl(i32.load16U(address, offset), 16), 16);
      return f32x4.extract(decode(f, dtype, i32x4.splat(signExtended)), 0);
    }
  }
}

/** Writes f32x4 as four consecutive elements. */
export function store4(f: FunctionBuilder, dtype: DType, address: Int, value: Expr, offset = 0): void {
  if (dtype === "f32") f.store("v128", address, value, offset);
  else if (dtype === "i32") f.store("v128", address, i32x4.fromF32(value), offset);
  else {
    const [x] = scratch(f);
    x.set(encode(f, dtype, value));
    f.store64Lane(address, i16x8.narrowU(x, x), 0, offset);
  }
}

/** Writes one f32 as an element. */
export function store1(f: FunctionBuilder, dtype: DType, address: Int, value: Expr, offset = 0): void {
  if (dtype === "f32") f.store("f32", address, value, offset);
  else if (dtype === "i32") f.store("i32", address, i32.fromF32(value), offset);
  else f.store("i32_16", address, i32x4.extract(encode(f, dtype, f32x4.splat(value)), 0), offset);
}

/** Elements to bytes: a shift. */
export function bytesOf(dtype: DType, elements: Expr): Expr {
  return elements.times(DTYPE_BYTES[dtype]);
}
