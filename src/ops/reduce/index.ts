import { axisOf, type Shape, sameShape, sizeOf } from "../../tensor/shape.js";
import { record } from "../../tensor/tape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { div, equal, mul } from "../elementwise/index.js";
import { floatOnly, operation } from "../operation.js";
import * as oracle from "./oracle.js";
import { sumOver } from "./sum-over.js";
import * as wasm from "./wasm.js";
import * as webgpu from "./webgpu.js";

const kernels = {
  sum: sumOver,
  max: operation("max", {
    oracle: (x: Tensor, axes: readonly number[]) => oracle.reduce("max", x, axes),
    wasm: (x: Tensor, axes: readonly number[]) => wasm.reduce("max", x, axes),
    webgpu: (x: Tensor, axes: readonly number[]) => webgpu.reduce("max", x, axes),
  }),
};

export interface ReduceOptions {
  /** Leave reduced axes in the shape with extent 1. Default false. */
  keepDims?: boolean;
}

function axesOf(caller: string, x: Tensor, axis: number | undefined): number[] {
  floatOnly(caller, x);
  return axis === undefined ? x.shape.map((_, k) => k) : [axisOf(caller, axis, x.shape.length)];
}

function reducedShape(shape: Shape, axes: readonly number[], keepDims: boolean): number[] {
  if (keepDims) return shape.map((n, k) => (axes.includes(k) ? 1 : n));
  return shape.filter((_, k) => !axes.includes(k));
}

/** Sum over `axes`, times `factor` before it is rounded to the dtype, in a shape where those axes are 1 or gone. */
function sumAxes(name: string, x: Tensor, axes: readonly number[], target: Shape, factor = 1): Tensor {
  const kept = kernels.sum(x.device, x, axes, factor);
  const shape = x.shape;
  record(name, [x], [kept], [], ([g]) => [g && (factor === 1 ? g : mul(g, factor)).expand(shape)]);
  return reshaped(kept, target);
}

/** `x` in another shape; `x` itself is not needed any more. */
function reshaped(x: Tensor, shape: Shape): Tensor {
  if (sameShape(x.shape, shape)) return x;
  const out = x.reshape(shape);
  x.dispose();
  return out;
}

/** Adds up what broadcasting `shape` to g's shape had stretched: the gradient of broadcasting. */
export function sumTo(g: Tensor, shape: Shape): Tensor {
  if (sameShape(g.shape, shape)) return g;
  const lead = g.shape.length - shape.length;
  const fits = lead >= 0 && shape.every((n, k) => n === g.shape[k + lead] || n === 1);
  if (!fits) throw new RangeError(`sumTo: [${g.shape.join(", ")}] is no broadcast of [${shape.join(", ")}]`);
  const axes = [...g.shape.keys()].filter((k) => k < lead || (shape[k - lead] === 1 && g.shape[k] !== 1));
  return sumAxes("sumTo", g, axes, shape);
}

/**
 * Sum over one axis, or over everything.
 * @param axis may count from the end; default: all axes
 */
export function sum(x: Tensor, axis?: number, { keepDims = false }: ReduceOptions = {}): Tensor {
  const axes = axesOf("sum", x, axis);
  return sumAxes("sum", x, axes, reducedShape(x.shape, axes, keepDims));
}

/**
 * Mean over one axis, or over everything; of 0 elements it is NaN.
 * @param axis may count from the end; default: all axes
 */
export function mean(x: Tensor, axis?: number, { keepDims = false }: ReduceOptions = {}): Tensor {
  const axes = axesOf("mean", x, axis);
  const count = sizeOf(axes.map((k) => x.shape[k]));
  return sumAxes("mean", x, axes, reducedShape(x.shape, axes, keepDims), 1 / count);
}

/**
 * The largest element over one axis, or over everything; NaN where there is one. Equal largest elements share the
 * gradient.
 * @param axis may count from the end; default: all axes
 * @throws RangeError over 0 elements
 */
export function max(x: Tensor, axis?: number, { keepDims = false }: ReduceOptions = {}): Tensor {
  const axes = axesOf("max", x, axis);
  if (axes.some((k) => x.shape[k] === 0)) {
    throw new RangeError(`max: at least one element is needed, got shape [${x.shape.join(", ")}]`);
  }
  const kept = kernels.max(x.device, x, axes);
  record("max", [x], [kept], [x, kept], ([g], [input, top]) => {
    if (!g) return [];
    const mask = equal(input, top);
    return [mul(mask, div(g, kernels.sum(mask.device, mask, axes, 1)))];
  });
  return reshaped(kept, reducedShape(x.shape, axes, keepDims));
}
