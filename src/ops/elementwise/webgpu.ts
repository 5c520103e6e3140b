import { broadcastStrides, map } from "../../devices/webgpu/map.js";
import { broadcastShape } from "../../tensor/shape.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import type { BinaryName, GradName, UnaryName } from "./contract.js";

/** Accurate where the built-in functions are not bound to be: WGSL's tanh may overflow, and its log near 1 is coarse. */
export const MATH = `
const GELU = 1.5957691216057308; // 2 √(2/π)
fn sigmoid(x: f32) -> f32 {
  let e = exp(-abs(x));
  return select(1.0, e, x < 0.0) / (1.0 + e);
}
// log(1 + u) for u in [0, 1], by the series of 2 artanh(u / (2 + u)).
fn log1p(u: f32) -> f32 {
  let s = u / (2.0 + u);
  let t = s * s;
  return 2.0 * s * (1.0 + t * (1.0 / 3.0 + t * (0.2 + t * (1.0 / 7.0 + t * (1.0 / 9.0 + t * (1.0 / 11.0 + t / 13.0))))));
}
fn tanh_of(x: f32) -> f32 {
  let t = x * x;
  // Near 0 the quotient below cancels: the series of tanh is exact to f32 up to 0.3.
  if (abs(x) < 0.3) {
    return x * (1.0 + t * (-1.0 / 3.0 + t * (2.0 / 15.0 + t * (-17.0 / 315.0 + t * (62.0 / 2835.0 + t * -0.0088632355)))));
  }
  let e = exp(-2.0 * abs(x));
  return select(1.0, -1.0, x < 0.0) * (1.0 - e) / (1.0 + e);
}
fn gelu_sigmoid(x: f32) -> f32 { return sigmoid(GELU * (x + 0.044715 * x * x * x)); }
`;

const unary: Record<UnaryName, string> = {
  neg: "-x",
  exp: "exp(x)",
  log: "log(x)",
  sqrt: "sqrt(x)",
  abs: "abs(x)",
  square: "x * x",
  tanh: "tanh_of(x)",
  sigmoid: "sigmoid(x)",
  logSigmoid: "min(x, 0.0) - log1p(exp(-abs(x)))",
  relu: "select(x, 0.0, x < 0.0)",
  gelu: "x * gelu_sigmoid(x)",
  silu: "x * sigmoid(x)",
};

const binary: Record<BinaryName, string> = {
  add: "a + b",
  sub: "a - b",
  mul: "a * b",
  div: "a / b",
  equal: "select(ZERO, ONE, a == b)",
};

/** From the upstream gradient g and the operation's input or output x (see `savedForGrad`). */
const grad: Record<GradName, string> = {
  sqrt: "g / (2.0 * x)",
  abs: "g * sign(x)",
  square: "g * 2.0 * x",
  tanh: "g * (1.0 - x * x)",
  sigmoid: "g * x * (1.0 - x)",
  logSigmoid: "g * sigmoid(-x)",
  relu: "select(0.0, g, x > 0.0)",
  gelu: "g * gated_slope(x, gelu_sigmoid(x), GELU * (1.0 + 0.134145 * min(x * x, 1e30)))",
  silu: "g * gated_slope(x, sigmoid(x), 1.0)",
};

/** The derivative of x·s where s is a sigmoid whose argument has that slope. */
const GATED_SLOPE = `
fn gated_slope(x: f32, s: f32, slope: f32) -> f32 { return s + x * s * (1.0 - s) * slope; }
`;

/** `activate0(x)`, `activate1(x)`, … as WGSL, for kernels that end with them. */
export function activationText(...names: ("none" | UnaryName)[]): string {
  const functions = names.map(
    (name, k) => `fn activate${k}(x: f32) -> f32 { return ${name === "none" ? "x" : unary[name]}; }`,
  );
  return [...(names.some((name) => name !== "none") ? [MATH] : []), ...functions].join("\n");
}

export function mapOne(name: UnaryName, x: Tensor): Tensor {
  const out = empty(x.shape, x.device, x.dtype);
  const type = x.dtype === "i32" ? "i32" : "f32";
  const helpers = x.dtype === "i32" ? "" : MATH;
  const apply = `${helpers}fn apply(i: u32) -> ${type} { let x = x_of(i); return ${unary[name]}; }`;
  map(name, out, { x: { tensor: x, strides: x.strides } }, apply);
  return out;
}

function zip(name: string, a: Tensor, b: Tensor, names: [string, string], apply: string): Tensor {
  const shape = broadcastShape(name, a.shape, b.shape);
  const out = empty(shape, a.device, a.dtype);
  map(
    name,
    out,
    {
      [names[0]]: { tensor: a, strides: broadcastStrides(a, shape) },
      [names[1]]: { tensor: b, strides: broadcastStrides(b, shape) },
    },
    apply,
  );
  return out;
}

export function mapTwo(name: BinaryName, a: Tensor, b: Tensor): Tensor {
  const type = a.dtype === "i32" ? "i32" : "f32";
  const apply = `const ZERO = ${type}(0); const ONE = ${type}(1);
fn apply(i: u32) -> ${type} { let a = a_of(i); let b = b_of(i); return ${binary[name]}; }`;
  return zip(name, a, b, ["a", "b"], apply);
}

export function mapGrad(name: GradName, g: Tensor, saved: Tensor): Tensor {
  const apply = `${MATH}${GATED_SLOPE}
fn apply(i: u32) -> f32 { let g = g_of(i); let x = x_of(i); return ${grad[name]}; }`;
  return zip(`${name}-gradient`, g, saved, ["g", "x"], apply);
}

/** A tensor and a number, which stands first where `reversed`. */
export function mapNumber(name: BinaryName, x: Tensor, number: number, reversed: boolean): Tensor {
  const out = empty(x.shape, x.device, x.dtype);
  const [a, b] = reversed ? ["P.number", "x_of(i)"] : ["x_of(i)", "P.number"];
  const apply = `const ZERO = 0.0; const ONE = 1.0;
fn apply(i: u32) -> f32 { let a = ${a}; let b = ${b}; return ${binary[name]}; }`;
  map(`${name}-number-${reversed}`, out, { x: { tensor: x, strides: x.strides } }, apply, { number });
  return out;
}
