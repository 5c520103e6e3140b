import { type Expr, type FunctionHandle, f32x4, i32, type ModuleBuilder, v128 } from "../../../devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../../../devices/wasm/kernel.js";
import { Layout } from "../../../devices/wasm/layout.js";
import {
  writeLoadRows,
  writePanels,
  writeScaleRows,
  writeStoreRows,
  writeTranspose,
} from "../../../devices/wasm/pack.js";
import { GROUP, LINE, PANEL, writeGroupTimesGroup, writeGroupTimesPanels } from "../../../devices/wasm/tiles.js";
import { DTYPE_BYTES } from "../../../tensor/dtype.js";
import { writeDiagonalTimesPanels } from "../../power-attention/wasm/intra.js";
import { type Dimensions, SEQUENCE_FIELDS } from "./dimensions.js";
import { LOWEST, writeMaskLater, writeSoftmaxStep } from "./weights.js";

/** Groups of queries in an item of work: each group of keys is packed once for all of them. */
const QUERY_GROUPS = 16;
/** Groups of keys that are packed and weighed at once: their weights stay in the first-level cache. */
const KEY_GROUPS = 8;
const PANEL_STRIDE = KEY_GROUPS * GROUP * 4 * PANEL;

/** Queries of an item of work. */
export const QUERY_BLOCK = QUERY_GROUPS * GROUP;

/** A thread's working memory. */
export function forwardBuffers({ d, e }: Dimensions) {
  const layout = new Layout();
  const at = {
    rows: layout.take(GROUP * 4 * Math.max(d, e)),
    factors: layout.take(LINE),
    weights: layout.take(KEY_GROUPS * GROUP * LINE),
    kT: layout.take(KEY_GROUPS * d * LINE),
    vPanels: layout.take(KEY_GROUPS * GROUP * 4 * e),
    qT: layout.take(QUERY_GROUPS * d * LINE),
    y: layout.take(QUERY_GROUPS * GROUP * 4 * e),
    top: layout.take(QUERY_GROUPS * LINE),
    sums: layout.take(QUERY_GROUPS * LINE),
  };
  return { at, bytes: layout.bytes };
}

export const FORWARD_ARGUMENTS = new Arguments({
  ...SEQUENCE_FIELDS,
  /** Blocks of queries in the sequence. */
  blocks: "i32",
  /** [B, T, Hq, e] */
  out: "i32",
  /** The output in f32 before it was rounded to a half format, or 0: not wanted. */
  exact: "i32",
  /** [B, Hq, T / 16, 2, 16]: maxima of the rows' scores, and reciprocals of their sums of weights. */
  saved: "i32",
});

/**
 * Causal softmax attention of one block of queries of one head: over blocks of keys from the first one on, scores, a step
 * of the streaming softmax, and weights times values, all in register tiles; divided by the sums at the end.
 */
export function writeForward(m: ModuleBuilder, dim: Dimensions): FunctionHandle {
  const { headDim, valueDim, dtype, d, e } = dim;
  const bytes = DTYPE_BYTES[dtype];
  const buffers = forwardBuffers(dim).at;
  const loadHead = writeLoadRows(m, dtype, headDim, d, "load-head");
  const loadValue = writeLoadRows(m, dtype, valueDim, e, "load-value");
  const storeRows = writeStoreRows(m, dtype, valueDim, e, "store");
  const storeExact = writeStoreRows(m, "f32", valueDim, e, "store-exact");
  const transpose = writeTranspose(m, d, "transpose");
  const toPanels = writePanels(m, e, "panels");
  const scaleHead = writeScaleRows(m, d, "scale-head");
  const scaleValue = writeScaleRows(m, e, "scale-value");
  const scores = writeGroupTimesGroup(m, headDim, LINE, "scores");
  const maskLater = writeMaskLater(m);
  const step = writeSoftmaxStep(m);
  const timesValues = writeGroupTimesPanels(m, e, LINE, "times-values");
  const timesOwnValues = writeDiagonalTimesPanels(m, e);

  return m.function(
    "forward",
    KERNEL_PARAMS,
    (f, args, item, scratch) => {
      const a = FORWARD_ARGUMENTS.fieldsAt(args);
      const at = (name: keyof typeof buffers) => scratch.plus(buffers[name]);
      const sequence = f.local("i32", i32.div(item, a.blocks));
      // The last queries see most keys: longest items first.
      const block = i32.sub(a.blocks.minus(1), i32.rem(item, a.blocks));
      const first = f.local("i32", block.times(QUERY_GROUPS));
      const b = f.local("i32", i32.div(sequence, a.queryHeads));
      const head = f.local("i32", i32.rem(sequence, a.queryHeads));
      const h = f.local("i32", i32.div(head, a.group));
      const groups = f.local("i32", i32.min(QUERY_GROUPS, i32.sub(a.groups, first)));
      const t0 = f.local("i32", first.times(GROUP));
      const [q, k, v, n, top, y] = f.locals("i32", 6);
      const tokens = (from: typeof n, g: typeof n) => i32.min(GROUP, i32.sub(a.time, i32.add(from, g).times(GROUP)));

      q.set(a.q.plus(i32.mul(b, a.qBatch)).plus(i32.mul(t0, a.qTime)).plus(i32.mul(head, a.qHead)));
      for (let lane = 0; lane < 4; lane++) f.store("v128", at("factors"), f32x4.splat(a.sign), 16 * lane);
      f.for(0, groups, 1, (g) => {
        n.set(tokens(first, g));
        f.call(loadHead, q, a.qTime, n, at("rows"));
        f.call(scaleHead, at("rows"), at("factors"));
        f.call(transpose, at("rows"), at("qT").plus(g.times(d * LINE)));
        q.add(a.qTime.times(GROUP));
        for (let lane = 0; lane < 4; lane++) {
          f.store("v128", at("top").plus(g.times(LINE)), f32x4.const(LOWEST), 16 * lane);
        }
      });
      f.fill(at("y"), 0, groups.times(GROUP * 4 * e));
      f.fill(at("sums"), 0, groups.times(LINE));

      const end = f.local("i32", i32.add(first, groups));
      const [full, keys, own] = f.locals("i32", 3);
      k.set(a.k.plus(i32.mul(b, a.kBatch)).plus(i32.mul(h, a.kHead)));
      v.set(a.v.plus(i32.mul(b, a.vBatch)).plus(i32.mul(h, a.vHead)));
      f.for(0, end, KEY_GROUPS, (j) => {
        f.for(0, i32.min(KEY_GROUPS, i32.sub(end, j)), 1, (g) => {
          n.set(tokens(j, g));
          f.call(loadHead, k, a.kTime, n, at("rows"));
          f.call(transpose, at("rows"), at("kT").plus(g.times(d * LINE)));
          f.call(loadValue, v, a.vTime, n, at("rows"));
          f.call(toPanels, at("rows"), at("vPanels").plus(g.times(GROUP * 4 * PANEL)), PANEL_STRIDE);
          k.add(a.kTime.times(GROUP));
          v.add(a.vTime.times(GROUP));
        });
        // Queries of groups before the block of keys see none of it.
        f.for(i32.max(0, i32.sub(j, first)), groups, 1, (g) => {
          const query = f.local("i32", i32.add(first, g));
          // Groups of keys wholly in the past, and the queries' own group where it is among them.
          full.set(i32.min(KEY_GROUPS, i32.sub(query, j)));
          own.set(i32.lt(i32.sub(query, j), KEY_GROUPS));
          keys.set(i32.add(full, own));
          const qGroup = f.local("i32", at("qT").plus(g.times(d * LINE)));
          f.for(0, keys, 1, (key) => {
            f.call(scores, at("kT").plus(key.times(d * LINE)), qGroup, at("weights").plus(key.times(GROUP * LINE)));
          });
          const ownWeights = f.local("i32", at("weights").plus(full.times(GROUP * LINE)));
          f.if(own, () => f.call(maskLater, ownWeights));
          top.set(at("top").plus(g.times(LINE)));
          y.set(at("y").plus(g.times(GROUP * 4 * e)));
          const sums = at("sums").plus(g.times(LINE));
          f.if(f.value(step, at("weights"), keys.times(GROUP), top, sums, at("factors"), a.unit), () => {
            f.call(scaleValue, y, at("factors"));
          });
          f.call(timesValues, at("weights"), at("vPanels"), PANEL_STRIDE, y, full.times(GROUP));
          const ownValues = at("vPanels").plus(full.times(GROUP * 4 * PANEL));
          f.if(own, () => f.call(timesOwnValues, ownWeights, ownValues, PANEL_STRIDE, y));
        });
      });

      const row = f.local("i32", i32.add(i32.mul(i32.add(i32.mul(b, a.time), t0), a.queryHeads), head));
      const storeAs = (store: FunctionHandle, base: Expr, width: number) => {
        f.call(store, y, n, base.plus(i32.mul(row, width)), a.queryHeads.times(width));
      };
      const saved = f.local("i32", a.saved.plus(i32.add(i32.mul(sequence, a.groups), first).times(2 * LINE)));
      f.for(0, groups, 1, (g) => {
        y.set(at("y").plus(g.times(GROUP * 4 * e)));
        for (let lane = 0; lane < 4; lane++) {
          const reciprocal = f32x4.div(f32x4.const(1), v128.load(at("sums").plus(g.times(LINE)), 16 * lane));
          f.store("v128", saved, v128.load(at("top").plus(g.times(LINE)), 16 * lane), 16 * lane);
          f.store("v128", saved, reciprocal, LINE + 16 * lane);
        }
        f.call(scaleValue, y, saved.plus(LINE));
        n.set(tokens(first, g));
        storeAs(storeRows, a.out, valueDim * bytes);
        f.if(a.exact, () => storeAs(storeExact, a.exact, 4 * valueDim));
        row.add(a.queryHeads.times(GROUP));
        saved.add(2 * LINE);
      });
    },
    { exported: true },
  );
}
