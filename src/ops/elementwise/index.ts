import { broadcastShape } from "../../tensor/shape.js";
import { record } from "../../tensor/tape.js";
import { fromValues, type Tensor } from "../../tensor/tensor.js";
import { floatOnly, operation, sameKind } from "../operation.js";
import { sumTo } from "../reduce/index.js";
import { type BinaryName, type GradName, savedForGrad, type UnaryName } from "./contract.js";
import * as oracle from "./oracle.js";
import * as wasm from "./wasm.js";
import * as webgpu from "./webgpu.js";

const INTEGER_UNARY: readonly UnaryName[] = ["neg", "square"];
const INTEGER_BINARY: readonly BinaryName[] = ["add", "sub", "mul", "equal"];

type Backward = (g: Tensor, x: Tensor) => Tensor;

/** An operation on each element, with the gradient rule; `saved` says whether the rule reads input or output. */
function unary(name: UnaryName, backward?: { saved: "input" | "output" | "none"; rule: Backward }) {
  const run = operation(name, {
    oracle: (x: Tensor) => oracle.mapOne(name, x),
    wasm: (x: Tensor) => wasm.mapOne(name, x),
    webgpu: (x: Tensor) => webgpu.mapOne(name, x),
  });
  const rule = backward?.rule ?? gradKernel(name as GradName);
  const saved = backward?.saved ?? savedForGrad[name as GradName];
  return (x: Tensor): Tensor => {
    if (!INTEGER_UNARY.includes(name)) floatOnly(name, x);
    const out = run(x.device, x);
    record(name, [x], [out], saved === "none" ? [] : [saved === "input" ? x : out], ([g], [of]) => [g && rule(g, of)]);
    return out;
  };
}

function gradKernel(name: GradName): Backward {
  const run = operation(`${name} (gradient)`, {
    oracle: (g: Tensor, x: Tensor) => oracle.mapGrad(name, g, x),
    wasm: (g: Tensor, x: Tensor) => wasm.mapGrad(name, g, x),
    webgpu: (g: Tensor, x: Tensor) => webgpu.mapGrad(name, g, x),
  });
  return (g, x) => run(g.device, g, x);
}

/** −x */
export const neg = unary("neg", { saved: "none", rule: (g) => neg(g) });
/** e^x */
export const exp = unary("exp", { saved: "output", rule: (g, y) => mul(g, y) });
/** Natural logarithm; −∞ at 0, NaN below. */
export const log = unary("log", { saved: "input", rule: (g, x) => div(g, x) });
export const sqrt = unary("sqrt");
/** |x|; its gradient at 0 is 0. */
export const abs = unary("abs");
/** x² */
export const square = unary("square");
export const tanh = unary("tanh");
/** 1 / (1 + e^−x) */
export const sigmoid = unary("sigmoid");
/** log(1 / (1 + e^−x)), accurate for large |x| of either sign: gates use it. */
export const logSigmoid = unary("logSigmoid");
/** max(x, 0); its gradient at 0 is 0. */
export const relu = unary("relu");
/** GPT-2's form: x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³))). Hendrycks and Gimpel 2016. */
export const gelu = unary("gelu");
/** x · sigmoid(x) */
export const silu = unary("silu");

function binary(name: BinaryName) {
  const two = operation(name, {
    oracle: (a: Tensor, b: Tensor) => oracle.mapTwo(name, a, b),
    wasm: (a: Tensor, b: Tensor) => wasm.mapTwo(name, a, b),
    webgpu: (a: Tensor, b: Tensor) => webgpu.mapTwo(name, a, b),
  });
  const one = operation(name, {
    oracle: (x: Tensor, n: number, reversed: boolean) => oracle.mapNumber(name, x, n, reversed),
    wasm: (x: Tensor, n: number, reversed: boolean) => wasm.mapNumber(name, x, n, reversed),
    webgpu: (x: Tensor, n: number, reversed: boolean) => webgpu.mapNumber(name, x, n, reversed),
  });
  return (a: Tensor | number, b: Tensor | number): Tensor => {
    const x = typeof a === "number" ? b : a;
    if (typeof x === "number") throw new TypeError(`${name}: at least one argument must be a tensor, got two numbers`);
    if (!INTEGER_BINARY.includes(name)) floatOnly(name, x);
    if (typeof a !== "number" && typeof b !== "number") {
      sameKind(name, a, b);
      broadcastShape(name, a.shape, b.shape);
      return two(a.device, a, b);
    }
    const number = (typeof a === "number" ? a : b) as number;
    if (x.dtype !== "i32") return one(x.device, x, number, typeof a === "number");
    if (!Number.isInteger(number)) {
      throw new RangeError(`${name}: an i32 tensor takes integers, got ${number}; convert it with to("f32")`);
    }
    const constant = fromValues(x.device, [number], [], "i32");
    const out = typeof a === "number" ? two(x.device, constant, x) : two(x.device, x, constant);
    constant.dispose();
    return out;
  };
}

const run = { add: binary("add"), sub: binary("sub"), mul: binary("mul"), div: binary("div"), equal: binary("equal") };

const tensors = (...list: (Tensor | number)[]) => list.filter((x) => typeof x !== "number");

/** a + b, with numpy's broadcasting. Two tensors must have one dtype and device. */
export function add(a: Tensor | number, b: Tensor | number): Tensor {
  const out = run.add(a, b);
  const inputs = tensors(a, b);
  const shapes = inputs.map((x) => x.shape);
  record("add", inputs, [out], [], ([g]) => shapes.map((shape) => g && sumTo(g, shape)));
  return out;
}

/** a − b, with numpy's broadcasting. */
export function sub(a: Tensor | number, b: Tensor | number): Tensor {
  const out = run.sub(a, b);
  const inputs = tensors(a, b);
  const shapes = inputs.map((x) => x.shape);
  const last = typeof b === "number" ? -1 : inputs.length - 1;
  record("sub", inputs, [out], [], ([g]) => shapes.map((shape, k) => g && sumTo(k === last ? neg(g) : g, shape)));
  return out;
}

/** a · b, element by element, with numpy's broadcasting. */
export function mul(a: Tensor | number, b: Tensor | number): Tensor {
  const out = run.mul(a, b);
  if (typeof a === "number" || typeof b === "number") {
    const [x, number] = (typeof a === "number" ? [b, a] : [a, b]) as [Tensor, number];
    record("mul", [x], [out], [], ([g]) => [g && mul(g, number)]);
  } else {
    const shapes = [a.shape, b.shape];
    const wanted = [a.requiresGrad, b.requiresGrad];
    record("mul", [a, b], [out], [a, b], ([g], [x, y]) => [
      g && wanted[0] ? sumTo(mul(g, y), shapes[0]) : undefined,
      g && wanted[1] ? sumTo(mul(g, x), shapes[1]) : undefined,
    ]);
  }
  return out;
}

/** a / b, element by element, with numpy's broadcasting. */
export function div(a: Tensor | number, b: Tensor | number): Tensor {
  const out = run.div(a, b);
  if (typeof b === "number") record("div", tensors(a), [out], [], ([g]) => [g && div(g, b)]);
  else if (typeof a === "number") {
    record("div", [b], [out], [b, out], ([g], [y, quotient]) => [g && neg(div(mul(g, quotient), y))]);
  } else {
    const shapes = [a.shape, b.shape];
    const wanted = [a.requiresGrad, b.requiresGrad];
    record("div", [a, b], [out], [b, out], ([g], [y, quotient]) => {
      if (!g) return [];
      const dA = div(g, y);
      return [
        wanted[0] ? sumTo(dA, shapes[0]) : undefined,
        wanted[1] ? sumTo(neg(mul(dA, quotient)), shapes[1]) : undefined,
      ];
    });
  }
  return out;
}

/** 1 where a = b, else 0, in the dtype of the inputs. Not differentiable. */
export function equal(a: Tensor | number, b: Tensor | number): Tensor {
  return run.equal(a, b);
}
