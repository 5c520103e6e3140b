import {
  type Expr,
  type FunctionBuilder,
  type FunctionHandle,
  f32,
  f32x4,
  i32,
  select,
  sumLanes,
  v128,
} from "../../../devices/wasm/emitter.js";
import { GROUP, LINE, PANEL } from "../../../devices/wasm/tiles.js";
import { LAYERNORM_EPSILON } from "../contract.js";
import { BACKWARD_ARGUMENTS, type BackwardBuffer } from "./backward-buffers.js";
import type { Parts } from "./parts.js";
import { NORMALIZE, panelStride } from "./sequence.js";

/** Panels of query head ⌊index / groups⌋, at the row of its group. */
export function headPanels(f: FunctionBuilder, base: Expr, index: Expr, groups: Expr, columns: number): Expr {
  const head = f.local("i32", i32.div(index, groups));
  const within = i32.sub(index, i32.mul(head, groups));
  return base.plus(i32.mul(head, groups.times(GROUP * 4 * columns))).plus(within.times(GROUP * 4 * PANEL));
}

/**
 * The gradients of y and of the row sums, from those of the output, for the chunk's query heads: dyT transposed,
 * dyPanels, dSum. `decayed`: times fromStart, as the first pass wants them.
 */
export function writePackUpstream(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  const gradient = writeNormalizeGradient(parts);
  const bytes = dim.outDtype === "f32" ? 4 : 2;
  const loadRows = parts.loadRows(dim.valueDim, dim.e, dim.outDtype);
  const loadExact = parts.loadRows(dim.valueDim, dim.e, "f32");
  return m.function(
    "pack-upstream",
    [
      ["args", "i32"],
      ["scratch", "i32"],
      ["b", "i32"],
      ["h", "i32"],
      ["t0", "i32"],
      ["n", "i32"],
      ["decayed", "i32"],
    ],
    (f, args, scratch, b, h, t0, n, decayed) => {
      const a = BACKWARD_ARGUMENTS.fieldsAt(args);
      const at = (name: BackwardBuffer) => i32.add(scratch, a[name]);
      const [row, valid, index, line] = f.locals("i32", 4);
      const groups = f.local("i32", i32.shrU(n.plus(GROUP - 1), 4));
      const queryHeads = f.local("i32", i32.mul(a.heads, a.group));
      const step = f.local("i32", queryHeads.times(dim.valueDim * bytes));
      f.for(0, a.group, 1, (k) => {
        f.for(0, n, GROUP, (t) => {
          const head = i32.add(i32.mul(h, a.group), k);
          row.set(i32.add(i32.mul(i32.add(i32.add(i32.mul(b, a.time), t0), t), queryHeads), head));
          valid.set(i32.min(GROUP, i32.sub(n, t)));
          line.set(at("dSum").plus(index.times(LINE)));
          f.fill(line, 0, LINE);
          f.if(
            a.dOut,
            () => f.call(loadRows, a.dOut.plus(row.times(dim.valueDim * bytes)), step, valid, at("rows")),
            () => f.fill(at("rows"), 0, GROUP * 4 * dim.e),
          );
          f.if(i32.ne(a.normalize, NORMALIZE.none), () => {
            f.if(
              a.exact,
              () => {
                const from = a.exact.plus(row.times(4 * dim.valueDim));
                f.call(loadExact, from, queryHeads.times(4 * dim.valueDim), valid, at("outRows"));
              },
              () => f.call(loadRows, a.out.plus(row.times(dim.valueDim * bytes)), step, valid, at("outRows")),
            );
            f.for(0, valid, 1, (r) => {
              const saved = f32.load(a.rowIn.plus(i32.add(row, i32.mul(r, queryHeads)).times(4)));
              const width = r.times(4 * dim.e);
              f.call(
                gradient,
                at("rows").plus(width),
                at("outRows").plus(width),
                saved,
                line.plus(r.times(4)),
                a.normalize,
              );
            });
          });
          f.if(a.dSumIn, () => {
            f.for(0, valid, 1, (r) => {
              f.store(
                "f32",
                line.plus(r.times(4)),
                f32.load(a.dSumIn.plus(i32.add(row, i32.mul(r, queryHeads)).times(4))),
              );
            });
          });
          f.if(decayed, () => {
            const weights = at("fromStart").plus(t.times(4));
            f.call(parts.scaleRows(dim.e), at("rows"), weights);
            for (let v = 0; v < 4; v++) {
              f.store("v128", line, f32x4.mul(v128.load(line, 16 * v), v128.load(weights, 16 * v)), 16 * v);
            }
          });
          f.call(parts.transpose(dim.e), at("rows"), at("dyT").plus(index.times(dim.e * LINE)));
          f.if(i32.eqz(decayed), () => {
            const panels = headPanels(f, at("dyPanels"), index, groups, dim.e);
            f.call(parts.panels(dim.e), at("rows"), panels, panelStride({ groups }));
          });
          index.add(1);
        });
      });
    },
  );
}

/**
 * One row of the normalisation's gradient, in place of d(out): with 'sum' and r = 1 / Σw,
 *     dy = r · dout      dSum = −r · (dout · out)
 * with 'layernorm' and r the standard deviation σ, c = mean(dout · out) · (σ + ε) / σ,
 *     dy = (dout − c · out − mean(dout)) / (σ + ε)
 */
function writeNormalizeGradient(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  const vectors = Math.ceil(dim.valueDim / 4);
  return m.function(
    "normalize-gradient",
    [
      ["dOut", "i32"],
      ["out", "i32"],
      ["saved", "f32"],
      ["dSum", "i32"],
      ["normalize", "i32"],
    ],
    (f, dOut, out, saved, dSum, normalize) => {
      const dot = f.local("v128", f32x4.const(0));
      const sum = f.local("v128", f32x4.const(0));
      const [factor, along, shift] = f.locals("v128", 3);
      const wide = f.local("f32");
      f.for(0, vectors, 1, (k) => {
        const x = f.local("v128", v128.load(dOut.plus(k.times(16))));
        dot.set(m.madd(x, v128.load(out.plus(k.times(16))), dot));
        sum.set(f32x4.add(sum, x));
      });
      f.if(
        i32.eq(normalize, NORMALIZE.sum),
        () => {
          factor.set(f32x4.splat(saved));
          along.set(f32x4.const(0));
          shift.set(f32x4.const(0));
          f.store("f32", dSum, f32.neg(f32.mul(saved, sumLanes(dot))));
        },
        () => {
          wide.set(f32.add(saved, LAYERNORM_EPSILON));
          const c = f32.mul(f32.mul(sumLanes(dot), 1 / dim.valueDim), f32.div(wide, saved));
          along.set(f32x4.splat(select(f32.const(0), c, f32.eq(saved, 0))));
          shift.set(f32x4.splat(f32.mul(sumLanes(sum), 1 / dim.valueDim)));
          factor.set(f32x4.splat(f32.div(1, wide)));
        },
      );
      f.for(0, vectors, 1, (k) => {
        const at = dOut.plus(k.times(16));
        const centred = f32x4.sub(f32x4.sub(v128.load(at), shift), f32x4.mul(along, v128.load(out.plus(k.times(16)))));
        f.store("v128", at, f32x4.mul(factor, centred));
      });
      // Columns past the last one must stay zero.
      for (let k = dim.valueDim; k < 4 * vectors; k++) f.store("f32", dOut, 0, 4 * k);
    },
  );
}
