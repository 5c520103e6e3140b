import { type FunctionHandle, type ModuleBuilder, v128 } from "../../devices/wasm/emitter.js";
import { multiply4x8 } from "../../devices/wasm/tiles.js";

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
    const sums = f.locals("v128", 2 * TILE_ROWS);
    const at = f.local("i32");
    f.if(more, () => {
      at.set(c);
      for (let i = 0; i < TILE_ROWS; i++) {
        sums[2 * i].set(v128.load(at));
        sums[2 * i + 1].set(v128.load(at, 16));
        at.add(rowStep);
      }
    });
    multiply4x8(f, sums, a, [0, 4, 8, 12], 4 * TILE_ROWS, b, 4 * TILE_COLUMNS, depth);
    at.set(c);
    for (let i = 0; i < TILE_ROWS; i++) {
      f.store("v128", at, sums[2 * i]);
      f.store("v128", at, sums[2 * i + 1], 16);
      at.add(rowStep);
    }
  });
}
