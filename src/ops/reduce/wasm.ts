import { load1, load4, store1, store4 } from "../../devices/wasm/convert.js";
import { type WasmDevice, wasmDevice } from "../../devices/wasm/device.js";
import { type Expr, f32, f32x4, f64, i32, type Local } from "../../devices/wasm/emitter.js";
import {
  collapse,
  ITEM_ELEMENTS,
  type Operand,
  operandOf,
  type RowWriter,
  rowParams,
  runRows,
} from "../../devices/wasm/rows.js";
import { DTYPE_BYTES, type DType } from "../../tensor/dtype.js";
import { rowMajor, sizeOf } from "../../tensor/shape.js";
import { empty, type Tensor } from "../../tensor/tensor.js";

type Kind = "sum" | "max";
type Axis = { extent: number; stride: number };

/** Terms that are added one after the other; sums of such runs are added up apart, so that errors stay small. */
const RUN = 64;

const START: Record<Kind, number> = { sum: 0, max: Number.NEGATIVE_INFINITY };
const combine4 = (kind: Kind, a: Expr, b: Expr) => (kind === "sum" ? f32x4.add(a, b) : f32x4.max(a, b));
const combine1 = (kind: Kind, a: Expr, b: Expr) => (kind === "sum" ? f64.add(a, b) : f64.max(a, b));

const EXTRA = [
  ["count", "i32"],
  ["stride", "i32"],
  ["factor", "f32"],
] as const;

/** Outputs next to each other whose inputs are too: lanes are outputs, walking down `count` rows. */
function columns(kind: Kind, to: DType, from: DType): RowWriter {
  return (m) =>
    m.function("row", rowParams(2, EXTRA), (f, ...params) => {
      const [n, target, source, , , count, stride, factor] = params as unknown as Local[];
      const [fromBytes, toBytes] = [DTYPE_BYTES[from], DTYPE_BYTES[to]];
      const runs = f.locals("v128", 4);
      const totals = f.locals("v128", 4);
      const at = f.local("i32");
      const left = f.local("i32");
      const run = f.local("i32");
      const group = (vectors: number, load: (k: number) => Expr, store: (k: number, value: Expr) => void) => {
        const width = vectors === 0 ? 1 : 4 * vectors;
        const used = totals.slice(0, Math.max(vectors, 1)).map((total, k) => ({ total, partial: runs[k] }));
        at.set(source);
        for (const { total } of used) total.set(f32x4.const(START[kind]));
        left.set(count);
        f.while(left, () => {
          run.set(i32.min(left, RUN));
          left.set(i32.sub(left, run));
          for (const { partial } of used) partial.set(f32x4.const(START[kind]));
          f.doWhile(() => {
            for (const [k, { partial }] of used.entries()) partial.set(combine4(kind, partial, load(k)));
            at.add(stride);
            run.set(i32.sub(run, 1));
          }, run);
          for (const { total, partial } of used) total.set(combine4(kind, total, partial));
        });
        for (const [k, { total }] of used.entries()) store(k, f32x4.mul(total, f32x4.splat(factor)));
        source.add(width * fromBytes);
        target.add(width * toBytes);
        n.set(i32.sub(n, width));
      };
      for (const vectors of [4, 1]) {
        f.while(i32.geU(n, 4 * vectors), () =>
          group(
            vectors,
            (k) => load4(f, from, at, 4 * k * fromBytes),
            (k, value) => store4(f, to, target, value, 4 * k * toBytes),
          ),
        );
      }
      f.while(n, () =>
        group(
          0,
          () => f32x4.splat(load1(f, from, at)),
          (_, value) => store1(f, to, target, f32x4.extract(value, 0)),
        ),
      );
    });
}

/** Each output on its own: lanes are inputs where they are next to each other. */
function rows(kind: Kind, to: DType, from: DType, contiguous: boolean): RowWriter {
  return (m) =>
    m.function("row", rowParams(2, EXTRA), (f, ...params) => {
      const [n, target, source, targetStep, sourceStep, count, stride, factor] = params as unknown as Local[];
      const bytes = DTYPE_BYTES[from];
      const partials = f.locals("v128", 4);
      const total = f.local("f64");
      const at = f.local("i32");
      const left = f.local("i32");
      const run = f.local("i32");
      f.doWhile(() => {
        at.set(source);
        left.set(count);
        total.set(START[kind]);
        if (contiguous) {
          f.while(i32.geU(left, 16), () => {
            run.set(i32.min(i32.shrU(left, 4), RUN));
            left.set(i32.sub(left, run.times(16)));
            for (const partial of partials) partial.set(f32x4.const(START[kind]));
            f.doWhile(() => {
              for (const [k, partial] of partials.entries()) {
                partial.set(combine4(kind, partial, load4(f, from, at, 4 * k * bytes)));
              }
              at.add(16 * bytes);
              run.set(i32.sub(run, 1));
            }, run);
            const [a, b, c, d] = partials;
            a.set(combine4(kind, combine4(kind, a, b), combine4(kind, c, d)));
            for (const lane of [0, 1, 2, 3]) total.set(combine1(kind, total, f64.fromF32(f32x4.extract(a, lane))));
          });
        }
        f.while(left, () => {
          total.set(combine1(kind, total, f64.fromF32(load1(f, from, at))));
          at.add(stride);
          left.set(i32.sub(left, 1));
        });
        store1(f, to, target, f32.mul(f32.fromF64(total), factor));
        source.add(sourceStep);
        target.add(targetStep);
        n.set(i32.sub(n, 1));
      }, n);
    });
}

/** Reduces one axis: `from` has the shape of `to`, and each of its elements heads a line of `axis.extent`. */
function pass(device: WasmDevice, kind: Kind, to: Operand, from: Operand, axis: Axis, factor: number): void {
  const outputs = sizeOf(to.shape);
  const piece = ITEM_ELEMENTS;
  if (outputs <= 16 && axis.extent > 2 * piece) {
    // Too few outputs to share out: reduce pieces of fixed size (results must not depend on the number of threads).
    const pieces = Math.ceil(axis.extent / piece);
    const shape = [...to.shape, pieces];
    const partial = new Temporary(device, shape);
    const whole = axis.extent % piece === 0 ? pieces : pieces - 1;
    const heads = (first: number, count: number): Operand => ({
      ...from,
      shape: [...to.shape, count],
      strides: [...from.strides, piece * axis.stride],
      offset: from.offset + first * piece * axis.stride,
    });
    pass(device, kind, partial.slice(0, whole), heads(0, whole), { extent: piece, stride: axis.stride }, 1);
    const rest = axis.extent - whole * piece;
    if (rest > 0)
      pass(device, kind, partial.slice(whole, 1), heads(whole, 1), { extent: rest, stride: axis.stride }, 1);
    const line = { ...partial.operand, shape: to.shape, strides: partial.operand.strides.slice(0, -1) };
    pass(device, kind, to, line, { extent: pieces, stride: 1 }, factor);
    partial.dispose();
    return;
  }
  const walk = collapse(to.shape, [to.strides, from.strides]);
  const last = walk.shape.length - 1;
  const wide = walk.strides[0][last] === 1 && walk.strides[1][last] === 1 && walk.shape[last] >= 4;
  const contiguous = axis.stride === 1;
  const key = `${kind} ${to.dtype} ${from.dtype} ${wide ? "columns" : `rows ${contiguous}`}`;
  runRows(
    device,
    key,
    [to, from],
    wide ? columns(kind, to.dtype, from.dtype) : rows(kind, to.dtype, from.dtype, contiguous),
    {
      extra: {
        count: { type: "i32", value: axis.extent },
        stride: { type: "i32", value: axis.stride * DTYPE_BYTES[from.dtype] },
        factor: { type: "f32", value: factor },
      },
      itemElements: Math.max(wide ? 16 : 1, Math.ceil(ITEM_ELEMENTS / Math.max(axis.extent, 1))),
    },
  );
}

/** f32 working memory between two passes. */
class Temporary {
  readonly #tensor: Tensor;

  constructor(device: WasmDevice, shape: readonly number[]) {
    this.#tensor = empty(shape, device, "f32");
  }

  get operand(): Operand {
    return operandOf(this.#tensor);
  }

  /** Part of the last axis. */
  slice(start: number, length: number): Operand {
    const { operand } = this;
    return { ...operand, shape: [...operand.shape.slice(0, -1), length], offset: start };
  }

  dispose(): void {
    this.#tensor.dispose();
  }
}

/** Sum (times `factor`) or maximum over `axes`, which keep extent 1. */
export function reduce(kind: Kind, x: Tensor, axes: readonly number[], factor = 1, dtype: DType = x.dtype): Tensor {
  const device = wasmDevice(x);
  const shape = x.shape.map((n, k) => (axes.includes(k) ? 1 : n));
  const out = empty(shape, device, dtype);
  const walk = collapse(
    axes.map((k) => x.shape[k]),
    [axes.map((k) => x.strides[k])],
  );
  const lines: Axis[] = walk.shape.map((extent, k) => ({ extent, stride: walk.strides[0][k] }));
  // From the innermost line outwards; what is still to reduce stands as further axes behind the kept ones.
  let from: Operand = x;
  let fromLines = lines;
  const temporaries: Temporary[] = [];
  while (fromLines.length > 1) {
    const outer = fromLines.slice(0, -1);
    const extents = outer.map((line) => line.extent);
    const partial = new Temporary(device, [...shape, ...extents]);
    temporaries.push(partial);
    const heads = {
      ...operandOf(from),
      shape: [...shape, ...extents],
      strides: [...from.strides.slice(0, shape.length), ...outer.map((line) => line.stride)],
    };
    pass(device, kind, partial.operand, heads, fromLines[fromLines.length - 1], 1);
    from = partial.operand;
    const strides = rowMajor(partial.operand.shape).slice(shape.length);
    fromLines = extents.map((extent, k) => ({ extent, stride: strides[k] }));
  }
  const heads = { ...operandOf(from), shape, strides: from.strides.slice(0, shape.length) };
  pass(device, kind, out, heads, fromLines[0], factor);
  for (const partial of temporaries) partial.dispose();
  return out;
}
