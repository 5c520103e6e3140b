import {
  type Expr,
  type FunctionBuilder,
  type FunctionHandle,
  f32x4,
  i32,
  type Local,
  type ModuleBuilder,
  v128,
} from "./emitter.js";

/*
 * Sums start from zero in the tile and join what is in memory at its end, so that long sums are added up in two levels.
 */

/** Rows (tokens) in a group: one cache line of float32. Transposed groups are [columns][GROUP]. */
export const GROUP = 16;
export const LINE = 4 * GROUP;

/** Columns of a panel: packed right-hand sides are [panel][row][PANEL]. */
export const PANEL = 8;
const PANEL_BYTES = 4 * PANEL;

export function roundUp(n: number, step: number): number {
  return Math.ceil(n / step) * step;
}

/**
 * Steps between two tests of the tile's loop. A step is 16 multiplications and additions and 6 loads; each test of a loop
 * costs about as much as four of them (the engine checks the stack there).
 */
const UNROLL = 16;

/**
 * The register tile of all products: acc[4][8] += Σ_n a[n][4] ⊗ b[n][8], acc as eight vectors, two a row. `a` is read by
 * broadcast at four constant offsets, and both pointers advance by constant steps; they and `n` are consumed. Write it
 * into a function of its own with little else: the engine optimises functions one by one, between calls, and the tile
 * wants all registers.
 */
export function multiply4x8(
  f: FunctionBuilder,
  acc: Local[],
  a: Local,
  aOffsets: readonly number[],
  aStep: number,
  b: Local,
  bStep: number,
  n: Local,
): void {
  const m = f.module;
  const b0 = f.local("v128");
  const b1 = f.local("v128");
  const x = f.local("v128");
  const step = (from: Expr, bOffset: number) => {
    b0.set(v128.load(b, bOffset));
    b1.set(v128.load(b, bOffset + 16));
    for (let r = 0; r < 4; r++) {
      x.set(v128.load32Splat(from, aOffsets[r]));
      acc[2 * r].set(m.madd(x, b0, acc[2 * r]));
      acc[2 * r + 1].set(m.madd(x, b1, acc[2 * r + 1]));
    }
  };
  const from = f.local("i32");
  f.while(i32.ge(n, UNROLL), () => {
    step(a, 0);
    for (let u = 1; u < UNROLL; u++) {
      // A branch that is always taken: without it the engine moves all loads to the front and spills.
      f.if(n, () => {
        from.set(a.plus(u * aStep));
        step(from, u * bStep);
      });
    }
    a.add(UNROLL * aStep);
    b.add(UNROLL * bStep);
    n.set(n.minus(UNROLL));
  });
  f.while(n, () => {
    step(a, 0);
    a.add(aStep);
    b.add(bStep);
    n.set(n.minus(1));
  });
}

const COLUMNS = [0, 4, 8, 12];

/**
 * y[16][columns] += Σ_n lines[n][16]ᵀ · panels[·][n][8]: a group of tokens against packed rows (queries against the
 * state, weights against values). Lines are `lineStride` bytes apart.
 */
export function writeGroupTimesPanels(
  m: ModuleBuilder,
  columns: number,
  lineStride: number,
  name: string,
): FunctionHandle {
  const row = 4 * columns;
  return m.function(
    name,
    [
      ["lines", "i32"],
      ["panels", "i32"],
      ["panelStride", "i32"],
      ["y", "i32"],
      ["n", "i32"],
    ],
    (f, lines, panels, panelStride, y, n) => {
      const acc = f.locals("v128", 8);
      const [a, b, k, out, panel] = f.locals("i32", 5);
      f.if(i32.le(n, 0), () => f.return());
      panel.set(panels);
      f.for(0, columns / PANEL, 1, () => {
        out.set(y);
        f.for(0, GROUP / 4, 1, (quad) => {
          for (const x of acc) x.set(f32x4.const(0));
          a.set(lines.plus(quad.times(16)));
          b.set(panel);
          k.set(n);
          multiply4x8(f, acc, a, COLUMNS, lineStride, b, PANEL_BYTES, k);
          for (let r = 0; r < 4; r++) {
            f.store("v128", out, f32x4.add(v128.load(out, r * row), acc[2 * r]), r * row);
            f.store("v128", out, f32x4.add(v128.load(out, r * row + 16), acc[2 * r + 1]), r * row + 16);
          }
          out.add(4 * row);
        });
        panel.add(panelStride);
        y.add(PANEL_BYTES);
      });
    },
  );
}

/**
 * c[rows][columns] = decay · c + Σ_n a[row][n] · panels[·][n][8] for `tiles` blocks of four rows: features of keys
 * against values. Rows of `a` are `aStride` bytes apart.
 */
export function writeRowsTimesPanels(m: ModuleBuilder, columns: number, aStride: number, name: string): FunctionHandle {
  const row = 4 * columns;
  return m.function(
    name,
    [
      ["a", "i32"],
      ["panels", "i32"],
      ["panelStride", "i32"],
      ["c", "i32"],
      ["tiles", "i32"],
      ["n", "i32"],
      ["decay", "f32"],
    ],
    (f, a, panels, panelStride, c, tiles, n, decay) => {
      const acc = f.locals("v128", 8);
      const [x, b, k, out, panel] = f.locals("i32", 5);
      const d = f.local("v128");
      f.if(i32.le(n, 0), () => f.return());
      d.set(f32x4.splat(decay));
      panel.set(panels);
      f.for(0, columns / PANEL, 1, (p) => {
        out.set(c.plus(p.times(PANEL_BYTES)));
        x.set(a);
        f.for(0, tiles, 1, (tile) => {
          for (const y of acc) y.set(f32x4.const(0));
          x.set(a.plus(i32.mul(tile, 4 * aStride)));
          b.set(panel);
          k.set(n);
          multiply4x8(f, acc, x, [0, aStride, 2 * aStride, 3 * aStride], 4, b, PANEL_BYTES, k);
          for (let r = 0; r < 4; r++) {
            f.store("v128", out, m.madd(d, v128.load(out, r * row), acc[2 * r]), r * row);
            f.store("v128", out, m.madd(d, v128.load(out, r * row + 16), acc[2 * r + 1]), r * row + 16);
          }
          out.add(4 * row);
        });
        panel.add(panelStride);
      });
    },
  );
}

/**
 * lines[row][16] = init[row] · weights[16] + Σ_n a[row][n] · b[n][16] for `tiles` blocks of four rows; `a` is row-major
 * with `n` = `depth` columns and rows `aStride` bytes apart. The gradient of features: state rows against values.
 */
export function writeRowsTimesGroup(m: ModuleBuilder, depth: number, aStride: number, name: string): FunctionHandle {
  return m.function(
    name,
    [
      ["a", "i32"],
      ["b", "i32"],
      ["init", "i32"],
      ["weights", "i32"],
      ["lines", "i32"],
      ["tiles", "i32"],
    ],
    (f, a, b, init, weights, lines, tiles) => {
      const acc = f.locals("v128", 8);
      const [x, y, k] = f.locals("i32", 3);
      const [w0, w1, z] = f.locals("v128", 3);
      f.for(0, tiles, 1, () => {
        f.for(0, GROUP / PANEL, 1, (half) => {
          const at = half.times(PANEL_BYTES);
          w0.set(v128.load(weights.plus(at)));
          w1.set(v128.load(weights.plus(at), 16));
          for (let r = 0; r < 4; r++) {
            z.set(v128.load32Splat(init, 4 * r));
            acc[2 * r].set(f32x4.mul(z, w0));
            acc[2 * r + 1].set(f32x4.mul(z, w1));
          }
          x.set(a);
          y.set(b.plus(at));
          k.set(depth);
          multiply4x8(f, acc, x, [0, aStride, 2 * aStride, 3 * aStride], 4, y, LINE, k);
          for (let r = 0; r < 4; r++) {
            f.store("v128", lines.plus(at), acc[2 * r], r * LINE);
            f.store("v128", lines.plus(at), acc[2 * r + 1], r * LINE + 16);
          }
        });
        a.add(4 * aStride);
        init.add(16);
        lines.add(4 * LINE);
      });
    },
  );
}

/**
 * out[16][·] = Σ_n x[n][16] · y[n][16] for two transposed groups: scores of 16 keys (rows of `out`, `outStride` bytes
 * apart) by 16 queries.
 */
export function writeGroupTimesGroup(m: ModuleBuilder, depth: number, outStride: number, name: string): FunctionHandle {
  return m.function(
    name,
    [
      ["x", "i32"],
      ["y", "i32"],
      ["out", "i32"],
    ],
    (f, x, y, out) => {
      const acc = f.locals("v128", 8);
      const [a, b, k] = f.locals("i32", 3);
      f.for(0, GROUP / 4, 1, (quad) => {
        f.for(0, GROUP / PANEL, 1, (half) => {
          for (const r of acc) r.set(f32x4.const(0));
          a.set(x.plus(quad.times(16)));
          b.set(y.plus(half.times(PANEL_BYTES)));
          k.set(depth);
          multiply4x8(f, acc, a, COLUMNS, LINE, b, LINE, k);
          for (let r = 0; r < 4; r++) {
            f.store("v128", out.plus(half.times(PANEL_BYTES)), acc[2 * r], r * outStride);
            f.store("v128", out.plus(half.times(PANEL_BYTES)), acc[2 * r + 1], r * outStride + 16);
          }
        });
        out.add(4 * outStride);
      });
    },
  );
}
