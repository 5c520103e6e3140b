import { wasmDevice } from "../../devices/wasm/device.js";
import { type Expr, type FunctionBuilder, f32x4, i32x4, type Local, v128 } from "../../devices/wasm/emitter.js";
import { type MapBody, map, mapInto } from "../../devices/wasm/map.js";
import { exp4, log4, logSigmoid4, sigmoid4, tanh4 } from "../../devices/wasm/math.js";
import { type Operand, operandOf } from "../../devices/wasm/rows.js";
import { broadcastShape } from "../../tensor/shape.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import type { BinaryName, GradName, UnaryName } from "./contract.js";

type Unary = (f: FunctionBuilder, x: Local) => Expr;
type Binary = (f: FunctionBuilder, a: Local, b: Local) => Expr;

const c = (value: number) => f32x4.const(value);
const GELU = 2 * Math.sqrt(2 / Math.PI);

/** sigmoid(2u) of gelu's tanh form, x·sigmoid(2u) = x/2·(1 + tanh(u)). */
function geluSigmoid(f: FunctionBuilder, x: Local): Expr {
  const cubic = f.module.madd(f32x4.mul(x, x), c(0.044715 * GELU), c(GELU));
  return sigmoid4(f, f32x4.mul(x, cubic));
}

export const unary: Record<UnaryName, Unary> = {
  neg: (_f, x) => f32x4.neg(x),
  exp: exp4,
  log: log4,
  sqrt: (_f, x) => f32x4.sqrt(x),
  abs: (_f, x) => f32x4.abs(x),
  square: (_f, x) => f32x4.mul(x, x),
  tanh: tanh4,
  sigmoid: sigmoid4,
  logSigmoid: logSigmoid4,
  relu: (_f, x) => f32x4.max(x, c(0)),
  gelu: (f, x) => f32x4.mul(x, geluSigmoid(f, x)),
  silu: (f, x) => f32x4.mul(x, sigmoid4(f, x)),
};

const binary: Record<BinaryName, Binary> = {
  add: (_f, a, b) => f32x4.add(a, b),
  sub: (_f, a, b) => f32x4.sub(a, b),
  mul: (_f, a, b) => f32x4.mul(a, b),
  div: (_f, a, b) => f32x4.div(a, b),
  equal: (_f, a, b) => v128.and(f32x4.eq(a, b), c(1)),
};

/** s + x·s·(1 − s)·slope, the derivative of x·s where s is a sigmoid whose argument has that slope. */
function gatedSlope(x: Local, s: Local, slope?: Expr): Expr {
  const product = f32x4.mul(f32x4.mul(x, s), f32x4.sub(c(1), s));
  return f32x4.add(s, slope ? f32x4.mul(product, slope) : product);
}

const grad: Record<GradName, Binary> = {
  sqrt: (_f, g, y) => f32x4.div(g, f32x4.add(y, y)),
  abs: (_f, g, x) => {
    const signed = v128.xor(g, v128.and(x, i32x4.const(0x80000000 | 0)));
    return v128.and(signed, f32x4.ne(x, c(0)));
  },
  square: (_f, g, x) => f32x4.mul(g, f32x4.add(x, x)),
  tanh: (_f, g, y) => f32x4.mul(g, f32x4.sub(c(1), f32x4.mul(y, y))),
  sigmoid: (_f, g, y) => f32x4.mul(f32x4.mul(g, y), f32x4.sub(c(1), y)),
  logSigmoid: (f, g, x) => f32x4.mul(g, sigmoid4(f, f32x4.neg(x))),
  relu: (_f, g, x) => v128.and(g, f32x4.gt(x, c(0))),
  gelu: (f, g, x) => {
    const s = f.local("v128", geluSigmoid(f, x));
    // Beyond 1e15 the product is 0 anyway; a square of infinity would make it NaN.
    const slope = f.module.madd(f32x4.pmin(f32x4.mul(x, x), c(1e30)), c(3 * 0.044715 * GELU), c(GELU));
    return f32x4.mul(g, gatedSlope(x, s, slope));
  },
  silu: (f, g, x) => {
    const s = f.local("v128", sigmoid4(f, x));
    return f32x4.mul(g, gatedSlope(x, s));
  },
};

/** Integers wrap around, as in the oracle. Their lanes hold the bits themselves. */
export const integer: Partial<Record<UnaryName | BinaryName, Binary>> = {
  neg: (_f, a) => i32x4.sub(i32x4.const(0), a),
  square: (_f, a) => i32x4.mul(a, a),
  add: (_f, a, b) => i32x4.add(a, b),
  sub: (_f, a, b) => i32x4.sub(a, b),
  mul: (_f, a, b) => i32x4.mul(a, b),
  equal: (_f, a, b) => v128.and(i32x4.eq(a, b), i32x4.const(1)),
};

/** The bits of an i32 tensor, as lanes that no conversion touches. */
const raw = (x: Tensor): Operand => ({ ...operandOf(x), dtype: "f32" });

function mapIntegers(name: UnaryName | BinaryName, inputs: Tensor[]): Tensor {
  const [a, b = a] = inputs;
  const out = empty(broadcastShape(name, a.shape, b.shape), a.device, "i32");
  const body: MapBody = (f, [x, y = x]) => integer[name]!(f, x, y);
  mapInto(wasmDevice(a), `integer ${name}`, raw(out), inputs.map(raw), body);
  return out;
}

export function mapOne(name: UnaryName, x: Tensor): Tensor {
  if (x.dtype === "i32") return mapIntegers(name, [x]);
  return map(wasmDevice(x), name, x.shape, x.dtype, [x], (f, [value]) => unary[name](f, value));
}

export function mapTwo(name: BinaryName, a: Tensor, b: Tensor): Tensor {
  if (a.dtype === "i32") return mapIntegers(name, [a, b]);
  const shape = broadcastShape(name, a.shape, b.shape);
  return map(wasmDevice(a), name, shape, a.dtype, [a, b], (f, [x, y]) => binary[name](f, x, y));
}

/** From the upstream gradient and the operation's input or output. */
export function mapGrad(name: GradName, g: Tensor, saved: Tensor): Tensor {
  return map(wasmDevice(g), `${name} grad`, g.shape, g.dtype, [g, saved], (f, [x, y]) => grad[name](f, x, y));
}

/** A tensor and a number, which stands first where `reversed`. */
export function mapNumber(name: BinaryName, x: Tensor, number: number, reversed: boolean): Tensor {
  const body: MapBody = (f, [value], lanes) => binary[name](f, reversed ? lanes : value, reversed ? value : lanes);
  return map(wasmDevice(x), `${name} number ${reversed}`, x.shape, x.dtype, [x], body, number);
}
