import { load1, load4 } from "../../devices/wasm/convert.js";
import { type FunctionHandle, i32, type Local, type ModuleBuilder, shuffle32 } from "../../devices/wasm/emitter.js";
import { DTYPE_BYTES, type DType } from "../../tensor/dtype.js";

/** Which elements of an operand lie next to each other: the lanes of a panel, the summed axis, or neither. */
export type Contiguous = "lanes" | "depth" | "none";

/**
 * Emits `pack(source, laneStep, depthStep, lanes, depth, panel)`: writes a panel `[depth, width]` of f32 from an
 * operand with any strides (in bytes), zeros in lanes that don't exist. Rows of the first factor and columns of the
 * second are lanes; depth is the summed axis.
 */
export function packFunction(m: ModuleBuilder, width: 4 | 8, dtype: DType, contiguous: Contiguous): FunctionHandle {
  const bytes = DTYPE_BYTES[dtype];
  const params = [
    ["source", "i32"],
    ["laneStep", "i32"],
    ["depthStep", "i32"],
    ["lanes", "i32"],
    ["depth", "i32"],
    ["panel", "i32"],
  ] as const;
  return m.function("pack", params, (f, source, laneStep, depthStep, lanes, depth, panel) => {
    const left = f.local("i32", depth);
    const at = f.local("i32");
    if (contiguous === "lanes") {
      f.if(i32.eq(lanes, width), () => {
        f.while(left, () => {
          for (let k = 0; k < width; k += 4) f.store("v128", panel, load4(f, dtype, source, k * bytes), 4 * k);
          source.add(depthStep);
          panel.add(4 * width);
          left.set(i32.sub(left, 1));
        });
      });
    }
    if (contiguous === "depth") {
      const rows = f.locals("v128", 4);
      const mixed = f.locals("v128", 4);
      f.if(i32.eq(lanes, width), () => {
        f.while(i32.geU(left, 4), () => {
          at.set(source);
          for (let k = 0; k < width; k += 4) {
            for (const row of rows) {
              row.set(load4(f, dtype, at));
              at.add(laneStep);
            }
            transpose(rows, mixed);
            for (const [row, column] of rows.entries()) f.store("v128", panel, column, 4 * (row * width + k));
          }
          source.add(4 * bytes);
          panel.add(16 * width);
          left.set(i32.sub(left, 4));
        });
      });
    }
    const lane = f.local("i32");
    f.while(left, () => {
      f.fill(panel, 0, 4 * width);
      at.set(source);
      lane.set(0);
      f.doWhile(
        () => {
          f.store("f32", panel.plus(lane.times(4)), load1(f, dtype, at));
          at.add(laneStep);
          lane.add(1);
        },
        () => i32.lt(lane, lanes),
      );
      source.add(depthStep);
      panel.add(4 * width);
      left.set(i32.sub(left, 1));
    });
  });
}

/** Four rows of four become their columns, in place. */
function transpose(rows: readonly Local[], mixed: readonly Local[]): void {
  const [a, b, c, d] = rows;
  const [p, q, r, s] = mixed;
  p.set(shuffle32(a, b, [0, 4, 1, 5]));
  q.set(shuffle32(a, b, [2, 6, 3, 7]));
  r.set(shuffle32(c, d, [0, 4, 1, 5]));
  s.set(shuffle32(c, d, [2, 6, 3, 7]));
  a.set(shuffle32(p, r, [0, 1, 4, 5]));
  b.set(shuffle32(p, r, [2, 3, 6, 7]));
  c.set(shuffle32(q, s, [0, 1, 4, 5]));
  d.set(shuffle32(q, s, [2, 3, 6, 7]));
}
