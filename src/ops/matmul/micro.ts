import { type FunctionHandle, i32, type ModuleBuilder, v128 } from "../../devices/wasm/emitter.js";

/** Rows and columns of a register tile: 8 accumulators, 4 factors and 2 vectors fit 16 registers. */
export const TILE_ROWS = 4;
export const TILE_COLUMNS = 8;

/**
 * Emits `micro(depth, a, b, c, rowStep, more)`: c[4, 8] = (more ? c : 0) + Σ a[depth, 4] · b[depth, 8] on packed panels.
 * A function of its own: the engine optimises it after some calls, and the tile's registers are all it holds.
 */
export function microFunction(m: ModuleBuilder): FunctionHandle {
  const params = [
    ["depth", "i32"],
    ["a", "i32"],
    ["b", "i32"],
    ["c", "i32"],
    ["rowStep", "i32"],
    ["more", "i32"],
  ] as const;
  return m.function("micro", params, (f, depth, a, b, c, rowStep, more) => {
    const rows = Array.from({ length: TILE_ROWS }, () => f.locals("v128", TILE_COLUMNS / 4));
    const columns = f.locals("v128", TILE_COLUMNS / 4);
    const factor = f.local("v128");
    const at = f.local("i32");
    f.if(more, () => {
      at.set(c);
      for (const row of rows) {
        for (const [k, sum] of row.entries()) sum.set(v128.load(at, 16 * k));
        at.add(rowStep);
      }
    });
    f.if(depth, () =>
      f.doWhile(() => {
        for (const [k, column] of columns.entries()) column.set(v128.load(b, 16 * k));
        for (const [i, row] of rows.entries()) {
          factor.set(v128.load32Splat(a, 4 * i));
          for (const [k, sum] of row.entries()) sum.set(m.madd(factor, columns[k], sum));
        }
        a.add(4 * TILE_ROWS);
        b.add(4 * TILE_COLUMNS);
        depth.set(i32.sub(depth, 1));
      }, depth),
    );
    at.set(c);
    for (const row of rows) {
      for (const [k, sum] of row.entries()) f.store("v128", at, sum, 16 * k);
      at.add(rowStep);
    }
  });
}
