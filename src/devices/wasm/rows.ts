import { DTYPE_BYTES } from "../../tensor/dtype.js";
import { type Shape, sizeOf } from "../../tensor/shape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { addressOf, type WasmDevice } from "./device.js";
import { type Expr, type FunctionHandle, i32, type ModuleBuilder } from "./emitter.js";
import { Arguments, KERNEL_PARAMS } from "./kernel.js";

/** Elements of output that one item of work covers where each costs about one arithmetic operation. */
export const ITEM_ELEMENTS = 16384;

/** What a kernel needs of a tensor: a view of memory, without a count of its own. */
export type Operand = Pick<Tensor, "shape" | "strides" | "offset" | "dtype" | "storage">;

export function operandOf(x: Operand): Operand {
  return { shape: x.shape, strides: x.strides, offset: x.offset, dtype: x.dtype, storage: x.storage };
}

/** The elements start … start + length − 1 of an axis. */
export function sliceOf(x: Operand, axis: number, start: number, length: number): Operand {
  return {
    ...operandOf(x),
    shape: x.shape.map((extent, k) => (k === axis ? length : extent)),
    offset: x.offset + start * x.strides[axis],
  };
}

/** How far apart a row's elements are: all the same one, next to each other, or any number of bytes (an argument). */
export type Step = 0 | 1 | "any";

/** Strides in elements that walk `tensor` over `shape`, which it broadcasts to: 0 where an axis is stretched. */
export function stridesOver(tensor: { shape: Shape; strides: readonly number[] }, shape: Shape): number[] {
  const lead = shape.length - tensor.shape.length;
  return shape.map((_, axis) => (axis < lead || tensor.shape[axis - lead] === 1 ? 0 : tensor.strides[axis - lead]));
}

/** The same walk with as few axes as possible; at least one. Axes of extent 1 go, neighbours that continue join. */
export function collapse(shape: Shape, strides: readonly (readonly number[])[]) {
  const extents: number[] = [];
  const steps: number[][] = strides.map(() => []);
  for (const [axis, extent] of shape.entries()) {
    if (extent === 1) continue;
    const last = extents.length - 1;
    if (last >= 0 && strides.every((s, k) => steps[k][last] === s[axis] * extent)) {
      extents[last] *= extent;
      for (const [k, s] of strides.entries()) steps[k][last] = s[axis];
    } else {
      extents.push(extent);
      for (const [k, s] of strides.entries()) steps[k].push(s[axis]);
    }
  }
  if (extents.length === 0) {
    extents.push(1);
    for (const s of steps) s.push(0);
  }
  return { shape: extents, strides: steps };
}

/**
 * What a row function gets: `(n, address of each operand, bytes between its elements, …extra)`. It handles n elements
 * of a row; it is a function of its own so that the engine can replace it by optimised code between two calls.
 */
export type RowWriter = (m: ModuleBuilder, steps: readonly Step[]) => FunctionHandle;

/** Parameters of a row function with `operands` operands. */
export function rowParams(operands: number, extra: readonly (readonly [string, "i32" | "f32"])[] = []) {
  const names = Array.from({ length: operands }, (_, k) => k);
  return [
    ["n", "i32"],
    ...names.map((k) => [`address${k}`, "i32"] as const),
    ...names.map((k) => [`step${k}`, "i32"] as const),
    ...extra,
  ] as const;
}

/**
 * Walks operands together over `shape` (the first operand's, which is written) in rows along the innermost axis left
 * after joining axes, and calls the row function for each, in parallel over slices of `itemElements` elements.
 * Operands may be views with any strides, and may broadcast to `shape`.
 */
export function runRows(
  device: WasmDevice,
  key: string,
  operands: readonly Operand[],
  write: RowWriter,
  options: { extra?: Record<string, { type: "i32" | "f32"; value: number }>; itemElements?: number } = {},
): void {
  const target = operands[0];
  const total = sizeOf(target.shape);
  if (total === 0) return;
  const extra = options.extra ?? {};
  const walk = collapse(
    target.shape,
    operands.map((tensor) => stridesOver(tensor, target.shape)),
  );
  const inner = walk.shape.length - 1;
  const steps = walk.strides.map((s): Step => (s[inner] === 0 ? 0 : s[inner] === 1 ? 1 : "any"));
  const outer = walk.shape.slice(0, inner);
  const fields: Record<string, "i32" | "f32"> = { total: "i32", perItem: "i32", rowLength: "i32" };
  const values: Record<string, number> = {
    total,
    perItem: options.itemElements ?? ITEM_ELEMENTS,
    rowLength: walk.shape[inner],
  };
  const put = (name: string, type: "i32" | "f32", value: number) => {
    fields[name] = type;
    values[name] = value;
  };
  for (const [k, tensor] of operands.entries()) {
    const bytes = DTYPE_BYTES[tensor.dtype];
    put(`address${k}`, "i32", addressOf(tensor));
    put(`step${k}`, "i32", walk.strides[k][inner] * bytes);
    for (const axis of outer.keys()) put(`stride${k}_${axis}`, "i32", walk.strides[k][axis] * bytes);
  }
  for (const [axis, extent] of outer.entries()) put(`extent${axis}`, "i32", extent);
  for (const [name, { type, value }] of Object.entries(extra)) put(name, type, value);
  const layout = new Arguments(fields);
  const module = device.module(`${key} ${steps.join(",")} rank ${outer.length}`, (m) => {
    const row = write(m, steps);
    m.function(
      "rows",
      KERNEL_PARAMS,
      (f, args, item) => {
        const a = layout.fieldsAt(args);
        const at = f.local("i32", i32.mul(item, a.perItem));
        const left = f.local("i32", i32.min(a.perItem, i32.sub(a.total, at)));
        const rowLength = f.local("i32", a.rowLength);
        const rowIndex = f.local("i32", i32.divU(at, rowLength));
        const column = f.local("i32", i32.remU(at, rowLength));
        const n = f.local("i32");
        const rest = f.local("i32");
        const axisIndex = f.local("i32");
        const addresses = f.locals("i32", operands.length);
        f.doWhile(() => {
          n.set(i32.min(i32.sub(rowLength, column), left));
          for (const [k, address] of addresses.entries()) {
            address.set(i32.add(a[`address${k}`], i32.mul(column, a[`step${k}`])));
          }
          rest.set(rowIndex);
          for (let axis = outer.length - 1; axis >= 0; axis--) {
            let index: Expr = rest;
            if (axis > 0) {
              axisIndex.set(i32.remU(rest, a[`extent${axis}`]));
              rest.set(i32.divU(rest, a[`extent${axis}`]));
              index = axisIndex;
            }
            for (const [k, address] of addresses.entries()) address.add(i32.mul(index, a[`stride${k}_${axis}`]));
          }
          f.call(
            row,
            n,
            ...addresses,
            ...addresses.map((_, k) => a[`step${k}`]),
            ...Object.keys(extra).map((name) => a[name]),
          );
          rowIndex.add(1);
          column.set(0);
          left.set(i32.sub(left, n));
        }, left);
      },
      { exported: true },
    );
  });
  device.run(module, "rows", layout, values, Math.ceil(total / values.perItem));
}
