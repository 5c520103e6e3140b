import {
  type Expr,
  type FunctionBuilder,
  type FunctionHandle,
  f32,
  f32x4,
  f64,
  i32,
  type Local,
  sumLanes,
  v128,
} from "../../../devices/wasm/emitter.js";
import { GROUP, LINE, PANEL } from "../../../devices/wasm/tiles.js";
import { SUB_BLOCK } from "./expand.js";
import { type Parts, TOKEN_BLOCK } from "./parts.js";

/**
 * A state in a thread's working memory: `s` [D padded to 16][e] and `z` [D][4], four partial sums a feature. Features
 * are the bare monomials; the multiplicities join when the state is read (`writePackState`).
 */

/** Bytes of the table of run starts per sub-block: an i32 each. */
const WORD = 4;

/** The runs of the `subBlocks` sub-blocks whose starts are at `starts`: where in the table, and how many. */
function findRuns(dim: Parts["dim"], runs: Expr, starts: Expr, subBlocks: Expr, table: Local, count: Local): void {
  table.set(i32.load(starts));
  count.set(i32.sub(i32.load(starts.plus(subBlocks.times(WORD))), table));
  table.set(runs.plus(table.times(4 * (dim.degree + 1))));
}

/**
 * One chunk's part of a state: s = decay·s + Σ_t weights[t] φ(x_t) ⊗ y_t, z = decay·z + Σ_t weights[t]·aside[t] φ(x_t).
 * `x` transposed groups, `y` panels; `groups` groups of 16 tokens.
 */
export function writeUpdateState(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  const expand = parts.expand("sum");
  const multiply = parts.rowsTimesPanels(dim.e, 4 * TOKEN_BLOCK);
  return m.function(
    "update-state",
    [
      ["x", "i32"],
      ["weights", "i32"],
      ["aside", "i32"],
      ["asideStep", "i32"],
      ["y", "i32"],
      ["panelStride", "i32"],
      ["groups", "i32"],
      ["decay", "f32"],
      ["s", "i32"],
      ["z", "i32"],
      ["runs", "i32"],
      ["starts", "i32"],
      ["features", "i32"],
      ["lines", "i32"],
    ],
    (f, x, weights, aside, asideStep, y, panelStride, groups, decay, s, z, runs, starts, features, lines) => {
      const xGroup = dim.d * LINE;
      const [table, count, tiles, inBlock, row, zRow, start] = f.locals("i32", 7);
      const now = f.local("f32", decay);
      // Tokens outermost: a block of them stays in the second-level cache while all features pass over it.
      f.for(0, groups, TOKEN_BLOCK / GROUP, (block) => {
        inBlock.set(i32.min(TOKEN_BLOCK / GROUP, i32.sub(groups, block)));
        const d = f.local("v128", f32x4.splat(now));
        row.set(s);
        zRow.set(z);
        start.set(starts);
        f.for(0, features, SUB_BLOCK, (at) => {
          findRuns(dim, runs, start, i32.const(1), table, count);
          tiles.set(i32.shrU(i32.min(SUB_BLOCK, i32.sub(features, at)).plus(3), 2));
          for (let k = 0; k < SUB_BLOCK; k++) f.store("v128", zRow, f32x4.mul(d, v128.load(zRow, 16 * k)), 16 * k);
          f.for(0, inBlock, 1, (k) => {
            const group = f.local("i32", block.plus(k));
            f.call(
              expand,
              x.plus(group.times(xGroup)),
              weights.plus(group.times(LINE)),
              table,
              count,
              lines.plus(k.times(LINE)),
              4 * TOKEN_BLOCK,
              aside.plus(i32.mul(group, asideStep)),
              zRow,
            );
          });
          const values = y.plus(block.times(GROUP * 4 * PANEL));
          f.call(multiply, lines, values, panelStride, row, tiles, inBlock.times(GROUP), now);
          start.add(WORD);
          row.add(SUB_BLOCK * 4 * dim.e);
          zRow.add(SUB_BLOCK * 16);
        });
        now.set(1);
      });
    },
  );
}

/**
 * A block of features of the state, made ready to be read: each times its multiplicity, as panels [e / 8][block][8]
 * and, where `rows` is not 0, also row-major [block][e]; and z as one number a feature.
 */
export function writePackState(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  const row = 4 * dim.e;
  return m.function(
    "pack-state",
    [
      ["s", "i32"],
      ["z", "i32"],
      ["multiplicity", "i32"],
      ["features", "i32"],
      ["panels", "i32"],
      ["rows", "i32"],
      ["zOut", "i32"],
    ],
    (f, s, z, multiplicity, features, panels, rows, zOut) => {
      const [times, sum, a, b] = f.locals("v128", 4);
      const [panel, from] = f.locals("i32", 2);
      f.for(0, features, 1, () => {
        times.set(v128.load32Splat(multiplicity));
        sum.set(v128.load(z));
        f.store("f32", zOut, f32.mul(f32x4.extract(times, 0), sumLanes(sum)));
        panel.set(panels);
        from.set(s);
        f.for(0, dim.e / PANEL, 1, () => {
          a.set(f32x4.mul(times, v128.load(from)));
          b.set(f32x4.mul(times, v128.load(from, 16)));
          f.store("v128", panel, a);
          f.store("v128", panel, b, 16);
          f.if(rows, () => {
            f.store("v128", rows, a);
            f.store("v128", rows, b, 16);
            rows.add(4 * PANEL);
          });
          from.add(4 * PANEL);
          panel.add(dim.block * 4 * PANEL);
        });
        multiplicity.add(4);
        z.add(16);
        zOut.add(4);
        panels.add(4 * PANEL);
        s.add(row);
      });
    },
  );
}

/**
 * y[t] += weights[t] · φ(x_t)ᵀ s and sums[t] += weights[t] · φ(x_t)·z, for `heads` × `groups` groups that share one
 * state. `x`, `y` and `sums` run over groups within heads; `weights` over groups.
 */
export function writeQueryState(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  const pack = parts.packState();
  const expand = parts.expand("dot");
  const multiply = parts.groupTimesPanels(dim.e);
  const subBlocks = dim.block / SUB_BLOCK;
  return m.function(
    "query-state",
    [
      ["x", "i32"],
      ["weights", "i32"],
      ["heads", "i32"],
      ["groups", "i32"],
      ["s", "i32"],
      ["z", "i32"],
      ["runs", "i32"],
      ["starts", "i32"],
      ["multiplicity", "i32"],
      ["features", "i32"],
      ["y", "i32"],
      ["sums", "i32"],
      ["panels", "i32"],
      ["zBlock", "i32"],
      ["lines", "i32"],
    ],
    (f, x, weights, heads, groups, s, z, runs, starts, multiplicity, features, y, sums, panels, zBlock, lines) => {
      const [n, count, table, index] = f.locals("i32", 4);
      f.for(0, features, dim.block, (at) => {
        n.set(i32.min(dim.block, i32.sub(features, at)));
        findRuns(dim, runs, starts, i32.divU(n.plus(SUB_BLOCK - 1), SUB_BLOCK), table, count);
        f.call(pack, s, z, multiplicity, n, panels, 0, zBlock);
        index.set(0);
        f.for(0, heads, 1, () => {
          f.for(0, groups, 1, (group) => {
            f.call(
              expand,
              x.plus(index.times(dim.d * LINE)),
              weights.plus(group.times(LINE)),
              table,
              count,
              lines,
              LINE,
              sums.plus(index.times(LINE)),
              zBlock,
            );
            f.call(multiply, lines, panels, dim.block * 4 * PANEL, y.plus(index.times(GROUP * 4 * dim.e)), n);
            index.add(1);
          });
        });
        starts.add(subBlocks * WORD);
        multiplicity.add(4 * dim.block);
        s.add(dim.block * 4 * dim.e);
        z.add(dim.block * 16);
      });
    },
  );
}

/** value · unit^degree, one factor at a time: unit^degree alone may be beyond f32 where the product is not. */
function inUnits(value: Expr, unit: Expr, degree: number): Expr {
  const multiply = value.type === "v128" ? f32x4.mul : f32.mul;
  let out = value;
  for (let k = 0; k < degree; k++) out = multiply(out, unit);
  return out;
}

/** to[valueDim] = from[valueDim] · factor · unit^degree. */
function scaleRow(f: FunctionBuilder, dim: Parts["dim"], factor: Expr, unit: Expr, from: Expr, to: Expr): void {
  const whole = Math.floor(dim.valueDim / 4);
  const by = f.local("v128", f32x4.splat(factor));
  const units = f.local("v128", f32x4.splat(unit));
  f.for(0, whole, 1, (c) => {
    const at = c.times(16);
    f.store("v128", to.plus(at), inUnits(f32x4.mul(by, v128.load(from.plus(at))), units, dim.degree));
  });
  for (let c = 4 * whole; c < dim.valueDim; c++) {
    f.store("f32", to, inUnits(f32.mul(factor, f32.load(from, 4 * c)), unit, dim.degree), 4 * c);
  }
}

/**
 * A public state (√multiplicity · Σ φ v, contiguous [D][valueDim] and [D]) to working form, times unit^degree. The
 * gradient of a final state enters the same way: what is accumulated then is Σ φ(q) dy.
 */
export function writeLoadState(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  return m.function(
    "load-state",
    [
      ["s", "i32"],
      ["z", "i32"],
      ["root", "i32"],
      ["features", "i32"],
      ["sOut", "i32"],
      ["zOut", "i32"],
      ["unit", "f32"],
    ],
    (f, s, z, root, features, sOut, zOut, unit) => {
      const factor = f.local("f32");
      const scaled = (value: Expr) => inUnits(f32.mul(factor, value), unit, dim.degree);
      f.for(0, features, 1, () => {
        factor.set(f32.div(1, f32.load(root)));
        scaleRow(f, dim, factor, unit, s, sOut);
        for (let c = dim.valueDim; c < dim.e; c++) f.store("f32", sOut, 0, 4 * c);
        f.store("v128", zOut, f32x4.replace(f32x4.const(0), 0, scaled(f32.load(z))));
        root.add(4);
        s.add(4 * dim.valueDim);
        z.add(4);
        sOut.add(4 * dim.e);
        zOut.add(16);
      });
    },
  );
}

/** The inverse of `load-state`: working form to a public state, times unit^degree. */
export function writeStoreState(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  return m.function(
    "store-state",
    [
      ["s", "i32"],
      ["z", "i32"],
      ["root", "i32"],
      ["features", "i32"],
      ["sOut", "i32"],
      ["zOut", "i32"],
      ["unit", "f32"],
    ],
    (f, s, z, root, features, sOut, zOut, unit) => {
      const factor = f.local("f32");
      const sum = f.local("v128");
      const scaled = (value: Expr) => inUnits(f32.mul(factor, value), unit, dim.degree);
      f.for(0, features, 1, () => {
        factor.set(f32.load(root));
        scaleRow(f, dim, factor, unit, s, sOut);
        sum.set(v128.load(z));
        f.store("f32", zOut, scaled(sumLanes(sum)));
        root.add(4);
        s.add(4 * dim.e);
        z.add(16);
        sOut.add(4 * dim.valueDim);
        zOut.add(4);
      });
    },
  );
}

/**
 * The gradient of reading a state, for `heads` × `groups` groups: dx[t] += Jφ(x_t)ᵀ (s y_t + z·init_t), y already
 * carrying its weight; and where `values` is set also out[t] += weights[t] · φ(x_t)ᵀ s. For queries y = dy and x = q;
 * for keys, against the gradient of the state, y = v, x = k and out is dv.
 */
export function writeReadGradient(parts: Parts, values: boolean): FunctionHandle {
  const { m, dim } = parts;
  const pack = parts.packState();
  const expand = values ? parts.expand("plain") : undefined;
  const multiply = values ? parts.groupTimesPanels(dim.e) : undefined;
  const transposed = parts.rowsTimesGroup(dim.valueDim, 4 * dim.e);
  const chain = parts.expandGradient();
  const subBlocks = dim.block / SUB_BLOCK;
  return m.function(
    values ? "read-gradient-keys" : "read-gradient-queries",
    [
      ["x", "i32"],
      ["weights", "i32"],
      ["y", "i32"],
      ["init", "i32"],
      ["heads", "i32"],
      ["groups", "i32"],
      ["s", "i32"],
      ["z", "i32"],
      ["runs", "i32"],
      ["starts", "i32"],
      ["multiplicity", "i32"],
      ["features", "i32"],
      ["dx", "i32"],
      ["out", "i32"],
      ["panels", "i32"],
      ["rows", "i32"],
      ["zBlock", "i32"],
      ["lines", "i32"],
    ],
    (
      f,
      x,
      weights,
      y,
      init,
      heads,
      groups,
      s,
      z,
      runs,
      starts,
      multiplicity,
      features,
      dx,
      out,
      panels,
      rows,
      zBlock,
      lines,
    ) => {
      const [n, count, table, index] = f.locals("i32", 4);
      const total = f.local("i32", i32.mul(heads, groups));
      f.for(0, features, dim.block, (at) => {
        n.set(i32.min(dim.block, i32.sub(features, at)));
        findRuns(dim, runs, starts, i32.divU(n.plus(SUB_BLOCK - 1), SUB_BLOCK), table, count);
        f.call(pack, s, z, multiplicity, n, panels, rows, zBlock);
        f.for(
          0,
          total,
          1,
          () => {
            const xGroup = f.local("i32", x.plus(index.times(dim.d * LINE)));
            if (expand && multiply) {
              f.call(expand, xGroup, weights.plus(index.times(LINE)), table, count, lines, LINE, 0, 0);
              f.call(multiply, lines, panels, dim.block * 4 * PANEL, out.plus(index.times(GROUP * 4 * dim.e)), n);
            }
            const yGroup = y.plus(index.times(dim.e * LINE));
            f.call(transposed, rows, yGroup, zBlock, init.plus(index.times(LINE)), lines, i32.shrU(n.plus(3), 2));
            f.call(chain, xGroup, table, count, lines, dx.plus(index.times(dim.d * LINE)));
          },
          index,
        );
        starts.add(subBlocks * WORD);
        multiplicity.add(4 * dim.block);
        s.add(dim.block * 4 * dim.e);
        z.add(dim.block * 16);
      });
    },
  );
}

/** Σ multiplicity · (s·ds + z·dz), in float64. */
export function writeDotStates(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  return m.function(
    "dot-states",
    [
      ["s", "i32"],
      ["z", "i32"],
      ["ds", "i32"],
      ["dz", "i32"],
      ["multiplicity", "i32"],
      ["features", "i32"],
    ],
    (f, s, z, ds, dz, multiplicity, features) => {
      const total = f.local("f64", 0);
      const row = f.local("v128");
      const [x, y] = f.locals("v128", 2);
      const add = (v: Expr) => f32x4.add(row, v);
      f.for(0, features, 1, () => {
        row.set(f32x4.const(0));
        f.for(0, dim.e / 4, 1, () => {
          row.set(add(f32x4.mul(v128.load(s), v128.load(ds))));
          s.add(16);
          ds.add(16);
        });
        x.set(v128.load(z));
        y.set(v128.load(dz));
        const all = f32.add(sumLanes(row), f32.mul(sumLanes(x), sumLanes(y)));
        total.set(f64.add(total, f64.fromF32(f32.mul(f32.load(multiplicity), all))));
        z.add(16);
        dz.add(16);
        multiplicity.add(4);
      });
      f.return(total);
    },
    { result: "f64" },
  );
}
