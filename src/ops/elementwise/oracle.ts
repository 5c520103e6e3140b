import { oracleOutput, valuesOf } from "../../devices/oracle.js";
import { broadcastShape } from "../../tensor/shape.js";
import { noGrad } from "../../tensor/tape.js";
import { scope, type Tensor } from "../../tensor/tensor.js";
import type { BinaryName, GradName, UnaryName } from "./contract.js";

const sigmoid = (x: number) => (x < 0 ? Math.exp(x) / (1 + Math.exp(x)) : 1 / (1 + Math.exp(-x)));
const GELU = 2 * Math.sqrt(2 / Math.PI);

const unary: Record<UnaryName, (x: number) => number> = {
  neg: (x) => -x,
  exp: Math.exp,
  log: Math.log,
  sqrt: Math.sqrt,
  abs: Math.abs,
  square: (x) => x * x,
  tanh: Math.tanh,
  sigmoid,
  logSigmoid: (x) => Math.min(x, 0) - Math.log1p(Math.exp(-Math.abs(x))),
  relu: (x) => (Number.isNaN(x) ? x : Math.max(x, 0)),
  gelu: (x) => x * sigmoid(GELU * (x + 0.044715 * x ** 3)),
  silu: (x) => x * sigmoid(x),
};

const binary: Record<BinaryName, (a: number, b: number) => number> = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  div: (a, b) => a / b,
  equal: (a, b) => (a === b ? 1 : 0),
};

/** From the upstream gradient and the operation's input or output (see `savedForGrad`). */
const grad: Record<GradName, (g: number, x: number) => number> = {
  sqrt: (g, y) => g / (2 * y),
  abs: (g, x) => g * Math.sign(x),
  square: (g, x) => g * 2 * x,
  tanh: (g, y) => g * (1 - y * y),
  sigmoid: (g, y) => g * y * (1 - y),
  logSigmoid: (g, x) => g * sigmoid(-x),
  relu: (g, x) => (x > 0 ? g : 0),
  gelu: (g, x) => {
    const s = sigmoid(GELU * (x + 0.044715 * x ** 3));
    return g * (s + x * s * (1 - s) * GELU * (1 + 3 * 0.044715 * x * x));
  },
  silu: (g, x) => {
    const s = sigmoid(x);
    return g * (s + x * s * (1 - s));
  },
};

export function mapOne(name: UnaryName, x: Tensor): Tensor {
  const { tensor, values } = oracleOutput(x, x.shape);
  const from = valuesOf(x);
  for (let k = 0; k < values.length; k++) values[k] = unary[name](from[k]);
  return tensor;
}

function zip(fn: (a: number, b: number) => number, a: Tensor, b: Tensor): Tensor {
  const shape = broadcastShape("elementwise", a.shape, b.shape);
  const { tensor, values } = oracleOutput(a, shape);
  const [x, y] = noGrad(() => scope(() => [a, b].map((t) => valuesOf(t.expand(shape)))));
  for (let k = 0; k < values.length; k++) values[k] = fn(x[k], y[k]);
  return tensor;
}

export function mapTwo(name: BinaryName, a: Tensor, b: Tensor): Tensor {
  if (a.dtype !== "i32") return zip(binary[name], a, b);
  // Integers wrap around. A product of two may need more than 53 bits.
  return zip(name === "mul" ? Math.imul : (x, y) => binary[name](x, y) | 0, a, b);
}

export function mapGrad(name: GradName, g: Tensor, saved: Tensor): Tensor {
  return zip(grad[name], g, saved);
}

/** A tensor and a number, which stands first where `reversed`. */
export function mapNumber(name: BinaryName, x: Tensor, number: number, reversed: boolean): Tensor {
  const { tensor, values } = oracleOutput(x, x.shape);
  const from = valuesOf(x);
  const fn = binary[name];
  for (let k = 0; k < values.length; k++) values[k] = reversed ? fn(number, from[k]) : fn(from[k], number);
  return tensor;
}
