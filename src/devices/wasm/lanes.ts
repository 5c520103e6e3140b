import { DTYPE_BYTES, type DType } from "../../tensor/dtype.js";
import { load1, load4, store1, store4 } from "./convert.js";
import { type Expr, type FunctionBuilder, f32, f32x4, type Int, i32, type Local } from "./emitter.js";

/** Access to elements i … i + 3 of rows; at a row's ragged end to element i alone, in lane 0 beside zeros. */
export interface Lanes {
  load(dtype: DType, row: Expr): Expr;
  store(dtype: DType, row: Expr, value: Expr): void;
  /** `other` (0) in the lanes that hold no element, so that a reduction leaves them out. */
  only(value: Expr, other?: number): Expr;
}

/**
 * Emits `body` for each element of rows of `count` contiguous elements: four at a time, then one at a time. Rows are
 * named by their address in bytes.
 */
export function forLanes(f: FunctionBuilder, count: Int, body: (lanes: Lanes, i: Local) => void): void {
  const i = f.local("i32", 0);
  const at = (dtype: DType, row: Expr) => row.plus(i.times(DTYPE_BYTES[dtype]));
  const wide: Lanes = {
    load: (dtype, row) => load4(f, dtype, at(dtype, row)),
    store: (dtype, row, value) => store4(f, dtype, at(dtype, row), value),
    only: (value) => value,
  };
  const first = (value: Expr) => f32x4.replace(f32x4.const(0), 0, value);
  const narrow: Lanes = {
    load: (dtype, row) => first(load1(f, dtype, at(dtype, row))),
    store: (dtype, row, value) => store1(f, dtype, at(dtype, row), f32x4.extract(value, 0)),
    only: (value, other = 0) => f32x4.replace(f32x4.const(other), 0, f32x4.extract(value, 0)),
  };
  const total = typeof count === "number" ? i32.const(count) : count;
  f.while(i32.le(i.plus(4), total), () => {
    body(wide, i);
    i.add(4);
  });
  f.while(i32.lt(i, total), () => {
    body(narrow, i);
    i.add(1);
  });
}

/** The sum of a vector's four lanes. */
export function horizontalSum(v: Local): Expr {
  const lane = (k: number) => f32x4.extract(v, k);
  return f32.add(f32.add(lane(0), lane(1)), f32.add(lane(2), lane(3)));
}

/** The largest of a vector's four lanes. */
export function horizontalMax(v: Local): Expr {
  const lane = (k: number) => f32x4.extract(v, k);
  return f32.max(f32.max(lane(0), lane(1)), f32.max(lane(2), lane(3)));
}
