import {
  type Expr,
  type FunctionBuilder,
  type FunctionHandle,
  f32,
  f32x4,
  i32,
  type Local,
  type ModuleBuilder,
  v128,
} from "../../../devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../../../devices/wasm/kernel.js";
import { Layout } from "../../../devices/wasm/layout.js";
import {
  writeLoadRows,
  writePanels,
  writeScaleRows,
  writeStoreRows,
  writeTranspose,
} from "../../../devices/wasm/pack.js";
import {
  GROUP,
  LINE,
  PANEL,
  writeGroupTimesGroup,
  writeGroupTimesPanels,
  writeRowsTimesPanels,
} from "../../../devices/wasm/tiles.js";
import { DTYPE_BYTES } from "../../../tensor/dtype.js";
import { BLOCK_ROW, writeDiagonalTimesPanels } from "../../power-attention/wasm/intra.js";
import { type Dimensions, SEQUENCE_FIELDS } from "./dimensions.js";
import { writeWeightsGradient } from "./weights.js";

/** Groups of queries, and of keys, whose weights are in memory at once: 64 × 64. */
const BLOCK = 4;
const QUERY_STRIDE = BLOCK * GROUP * 4 * PANEL;
/** Keys, values and their gradients that stay in the second-level cache while the queries pass by. */
const KEY_BYTES = 384 * 1024;
/** Groups of rows in an item of the passes over queries alone. */
export const ROW_GROUPS = 16;

export function backwardBuffers({ d, e }: Dimensions) {
  const fits = Math.floor(KEY_BYTES / (LINE * (3 * d + 2 * e)) / BLOCK) * BLOCK;
  const keyGroups = Math.min(16, Math.max(BLOCK, fits));
  const layout = new Layout();
  const at = {
    rows: layout.take(GROUP * 4 * Math.max(d, e)),
    factors: layout.take(LINE),
    kT: layout.take(keyGroups * d * LINE),
    kPanels: layout.take(keyGroups * d * LINE),
    vT: layout.take(keyGroups * e * LINE),
    dk: layout.take(keyGroups * d * LINE),
    dv: layout.take(keyGroups * e * LINE),
    qT: layout.take(BLOCK * d * LINE),
    qPanels: layout.take(BLOCK * d * LINE),
    dyT: layout.take(BLOCK * e * LINE),
    dyPanels: layout.take(BLOCK * e * LINE),
    scores: layout.take(BLOCK * GROUP * BLOCK_ROW),
    dWeights: layout.take(BLOCK * GROUP * BLOCK_ROW),
  };
  return { at, keyGroups, bytes: layout.bytes };
}

/** Working memory of the passes over queries alone. */
export function rowBuffers({ d, e }: Dimensions) {
  const layout = new Layout();
  const at = { x: layout.take(GROUP * 4 * Math.max(d, e)), y: layout.take(GROUP * 4 * e) };
  return { at, bytes: layout.bytes };
}

export const BACKWARD_ARGUMENTS = new Arguments({
  ...SEQUENCE_FIELDS,
  /** Parts that a head's blocks of keys are dealt out to, each with a gradient of the queries of its own. */
  segments: "i32",
  /** Items of `ROW_GROUPS` groups in a sequence. */
  rowItems: "i32",
  /** [B, T, Hq, e] */
  dOut: "i32",
  /** The same in f32: the output, before it was rounded to a half format. */
  out: "i32",
  /** What the forward saved. */
  saved: "i32",
  /** [B, Hq, T in whole groups]: dOut · out. */
  means: "i32",
  /** [B, H, segments, Hq / H, T in whole groups, d in whole panels] */
  partial: "i32",
  dq: "i32",
  dk: "i32",
  dv: "i32",
  scale: "f32",
});

/**
 * The backward of softmax attention in three passes: `means` (dOut · out of each query), `backward` (dk, dv, and dq in
 * segments), `query-gradient` (the sum of the segments).
 */
export function writeBackward(m: ModuleBuilder, dim: Dimensions): void {
  writeMeans(m, dim);
  writeKeyGradients(m, dim);
  writeQueryGradient(m, dim);
}

/**
 * dk and dv of one segment's blocks of keys of one key head: for each block of keys, over blocks of queries from its own
 * on, five products: scores and dOut·v, then weights and their gradients against dOut, queries and keys.
 */
function writeKeyGradients(m: ModuleBuilder, dim: Dimensions): FunctionHandle {
  const { headDim, valueDim, dtype, d, e } = dim;
  const bytes = DTYPE_BYTES[dtype];
  const { at: buffers, keyGroups } = backwardBuffers(dim);
  const keyStride = keyGroups * GROUP * 4 * PANEL;
  const load = { d: writeLoadRows(m, dtype, headDim, d, "load-d"), e: writeLoadRows(m, dtype, valueDim, e, "load-e") };
  const store = {
    d: writeStoreRows(m, dtype, headDim, d, "store-d"),
    e: writeStoreRows(m, dtype, valueDim, e, "store-e"),
  };
  const transpose = { d: writeTranspose(m, d, "transpose-d"), e: writeTranspose(m, e, "transpose-e") };
  const panels = { d: writePanels(m, d, "panels-d"), e: writePanels(m, e, "panels-e") };
  const scale = writeScaleRows(m, d, "scale-d");
  const block = writeBlock(m, dim, keyStride);
  return m.function(
    "backward",
    KERNEL_PARAMS,
    (f, args, item, scratch) => {
      const a = BACKWARD_ARGUMENTS.fieldsAt(args);
      const at = (name: keyof typeof buffers) => scratch.plus(buffers[name]);
      const sequence = f.local("i32", i32.div(item, a.segments));
      const b = f.local("i32", i32.div(sequence, a.heads));
      const h = f.local("i32", i32.rem(sequence, a.heads));
      const [source, source2, n, row, queries, head, index] = f.locals("i32", 7);
      const tokens = (g: Expr) => i32.min(GROUP, i32.sub(a.time, g.times(GROUP)));
      const dqBytes = f.local("i32", i32.mul(a.groups, d * LINE));
      const dq = f.local("i32", a.partial.plus(i32.mul(i32.mul(item, a.group), dqBytes)));
      f.fill(dq, 0, i32.mul(a.group, dqBytes));
      const setFactors = (value: Expr) => {
        for (let k = 0; k < 4; k++) f.store("v128", at("factors"), f32x4.splat(value), 16 * k);
      };

      const step = f.local("i32", a.segments.times(keyGroups));
      f.for(i32.rem(item, a.segments).times(keyGroups), a.groups, step, (first) => {
        const keys = f.local("i32", i32.min(keyGroups, i32.sub(a.groups, first)));
        const t0 = first.times(GROUP);
        source.set(a.k.plus(i32.mul(b, a.kBatch)).plus(i32.mul(t0, a.kTime)).plus(i32.mul(h, a.kHead)));
        source2.set(a.v.plus(i32.mul(b, a.vBatch)).plus(i32.mul(t0, a.vTime)).plus(i32.mul(h, a.vHead)));
        f.for(0, keys, 1, (g) => {
          n.set(tokens(i32.add(first, g)));
          f.call(load.d, source, a.kTime, n, at("rows"));
          f.call(transpose.d, at("rows"), at("kT").plus(g.times(d * LINE)));
          f.call(panels.d, at("rows"), at("kPanels").plus(g.times(GROUP * 4 * PANEL)), keyStride);
          f.call(load.e, source2, a.vTime, n, at("rows"));
          f.call(transpose.e, at("rows"), at("vT").plus(g.times(e * LINE)));
          source.add(a.kTime.times(GROUP));
          source2.add(a.vTime.times(GROUP));
        });
        f.fill(at("dk"), 0, keys.times(d * LINE));
        f.fill(at("dv"), 0, keys.times(e * LINE));

        setFactors(a.sign);
        f.for(0, a.group, 1, (member) => {
          head.set(i32.add(i32.mul(h, a.group), member));
          f.for(first, a.groups, BLOCK, (query) => {
            queries.set(i32.min(BLOCK, i32.sub(a.groups, query)));
            f.for(0, queries, 1, (g) => {
              index.set(i32.add(query, g));
              n.set(tokens(index));
              source.set(a.q.plus(i32.mul(b, a.qBatch)).plus(i32.mul(index.times(GROUP), a.qTime)));
              f.call(load.d, source.plus(i32.mul(head, a.qHead)), a.qTime, n, at("rows"));
              f.call(scale, at("rows"), at("factors"));
              f.call(transpose.d, at("rows"), at("qT").plus(g.times(d * LINE)));
              f.call(panels.d, at("rows"), at("qPanels").plus(g.times(GROUP * 4 * PANEL)), QUERY_STRIDE);
              row.set(i32.add(i32.mul(i32.add(i32.mul(b, a.time), index.times(GROUP)), a.queryHeads), head));
              const width = valueDim * bytes;
              f.call(load.e, a.dOut.plus(i32.mul(row, width)), a.queryHeads.times(width), n, at("rows"));
              f.call(transpose.e, at("rows"), at("dyT").plus(g.times(e * LINE)));
              f.call(panels.e, at("rows"), at("dyPanels").plus(g.times(GROUP * 4 * PANEL)), QUERY_STRIDE);
            });
            const line = f.local(
              "i32",
              i32.add(i32.mul(i32.add(i32.mul(b, a.queryHeads), head), a.groups), query).times(LINE),
            );
            const ownDq = i32.add(dq, i32.mul(member, dqBytes)).plus(query.times(d * LINE));
            f.for(0, i32.min(keys, i32.sub(i32.add(query, queries), first)), BLOCK, (key) => {
              f.call(
                block,
                scratch,
                i32.sub(query, first),
                queries,
                key,
                i32.min(BLOCK, i32.sub(keys, key)),
                a.saved.plus(line.times(2)),
                a.means.plus(line),
                ownDq,
                a.unit,
              );
            });
          });
        });

        // The queries carried the sign of scale alone.
        setFactors(f32.abs(a.scale));
        row.set(i32.add(i32.mul(i32.add(i32.mul(b, a.time), t0), a.heads), h));
        const [wide, high] = [headDim * bytes, valueDim * bytes];
        f.for(0, keys, 1, (g) => {
          n.set(tokens(i32.add(first, g)));
          const dk = f.local("i32", at("dk").plus(g.times(d * LINE)));
          f.call(scale, dk, at("factors"));
          f.call(store.d, dk, n, a.dk.plus(i32.mul(row, wide)), a.heads.times(wide));
          f.call(store.e, at("dv").plus(g.times(e * LINE)), n, a.dv.plus(i32.mul(row, high)), a.heads.times(high));
          row.add(a.heads.times(GROUP));
        });
      });
    },
    { exported: true },
  );
}

/** Up to 64 queries against up to 64 keys of the block in memory. `key` and `query` count groups from its first key. */
function writeBlock(m: ModuleBuilder, dim: Dimensions, keyStride: number): FunctionHandle {
  const { headDim, valueDim, d, e } = dim;
  const buffers = backwardBuffers(dim).at;
  const scores = writeGroupTimesGroup(m, headDim, BLOCK_ROW, "scores");
  const dWeights = writeGroupTimesGroup(m, valueDim, BLOCK_ROW, "d-weights");
  const weigh = writeWeightsGradient(m, BLOCK_ROW, false);
  const weighOwn = writeWeightsGradient(m, BLOCK_ROW, true);
  const toValues = writeRowsTimesPanels(m, e, BLOCK_ROW, "to-values");
  const toKeys = writeRowsTimesPanels(m, d, BLOCK_ROW, "to-keys");
  const toQueries = writeGroupTimesPanels(m, d, BLOCK_ROW, "to-queries");
  const ownToQueries = writeDiagonalTimesPanels(m, d, BLOCK_ROW);
  return m.function(
    "block",
    [
      ["scratch", "i32"],
      ["query", "i32"],
      ["queries", "i32"],
      ["key", "i32"],
      ["keys", "i32"],
      ["saved", "i32"],
      ["means", "i32"],
      ["dq", "i32"],
      ["unit", "f32"],
    ],
    (f, scratch, query, queries, key, keys, saved, means, dq, unit) => {
      const at = (name: keyof typeof buffers) => scratch.plus(buffers[name]);
      const [skip, rows, s, dw, full, n] = f.locals("i32", 6);
      f.for(0, keys, 1, (j) => {
        const k = f.local("i32", i32.add(key, j));
        // Groups of queries before the keys' own.
        skip.set(i32.max(0, i32.sub(k, query)));
        f.if(i32.lt(skip, queries), () => {
          rows.set(j.times(GROUP * BLOCK_ROW));
          f.for(skip, queries, 1, (i) => {
            s.set(at("scores").plus(rows).plus(i.times(LINE)));
            dw.set(at("dWeights").plus(rows).plus(i.times(LINE)));
            f.call(scores, at("kT").plus(k.times(d * LINE)), at("qT").plus(i.times(d * LINE)), s);
            f.call(dWeights, at("vT").plus(k.times(e * LINE)), at("dyT").plus(i.times(e * LINE)), dw);
            const [row, mean] = [saved.plus(i.times(2 * LINE)), means.plus(i.times(LINE))];
            f.if(
              i32.eq(i32.add(query, i), k),
              () => f.call(weighOwn, s, dw, row, mean, unit),
              () => f.call(weigh, s, dw, row, mean, unit),
            );
          });
          const from = i32.add(rows, skip.times(LINE));
          const panel = skip.times(GROUP * 4 * PANEL);
          n.set(i32.sub(queries, skip).times(GROUP));
          const dv = at("dv").plus(k.times(e * LINE));
          const dk = at("dk").plus(k.times(d * LINE));
          f.call(toValues, at("scores").plus(from), at("dyPanels").plus(panel), QUERY_STRIDE, dv, GROUP / 4, n, 1);
          f.call(toKeys, at("dWeights").plus(from), at("qPanels").plus(panel), QUERY_STRIDE, dk, GROUP / 4, n, 1);
        });
      });
      f.for(0, queries, 1, (i) => {
        // Groups of keys wholly in the queries' past; then their own, whose later keys must not be touched.
        full.set(i32.min(keys, i32.sub(i32.add(query, i), key)));
        f.if(i32.ge(full, 0), () => {
          const lines = f.local("i32", at("dWeights").plus(i.times(LINE)));
          const kPanels = f.local("i32", at("kPanels").plus(key.times(GROUP * 4 * PANEL)));
          const target = f.local("i32", dq.plus(i.times(d * LINE)));
          f.call(toQueries, lines, kPanels, keyStride, target, full.times(GROUP));
          f.if(i32.lt(full, keys), () => {
            const own = lines.plus(full.times(GROUP * BLOCK_ROW));
            f.call(ownToQueries, own, kPanels.plus(full.times(GROUP * 4 * PANEL)), keyStride, target);
          });
        });
      });
    },
  );
}

/** means = dOut · out for `ROW_GROUPS` groups of one head's queries; 0 in the padding. */
function writeMeans(m: ModuleBuilder, dim: Dimensions): FunctionHandle {
  const { valueDim, dtype, e } = dim;
  const buffers = rowBuffers(dim).at;
  const load = writeLoadRows(m, dtype, valueDim, e, "load-e");
  const loadExact = writeLoadRows(m, "f32", valueDim, e, "load-exact");
  const width = valueDim * DTYPE_BYTES[dtype];
  const dot = m.function(
    "dot-rows",
    [
      ["x", "i32"],
      ["y", "i32"],
      ["out", "i32"],
    ],
    (f, x, y, out) => {
      const sum = f.local("v128");
      f.for(0, GROUP, 1, () => {
        sum.set(f32x4.const(0));
        f.for(0, e / 4, 1, () => {
          sum.set(m.madd(v128.load(x), v128.load(y), sum));
          x.add(16);
          y.add(16);
        });
        const [a, b, c, d] = [0, 1, 2, 3].map((k) => f32x4.extract(sum, k));
        f.store("f32", out, f32.add(f32.add(a, b), f32.add(c, d)));
        out.add(4);
      });
    },
  );
  return m.function(
    "means",
    KERNEL_PARAMS,
    (f, args, item, scratch) => {
      const a = BACKWARD_ARGUMENTS.fieldsAt(args);
      const n = f.local("i32");
      const at = (name: keyof typeof buffers) => scratch.plus(buffers[name]);
      rowGroups(f, a, item, (sequence, group, tokens, first) => {
        n.set(tokens);
        f.call(load, a.dOut.plus(i32.mul(first, width)), a.queryHeads.times(width), n, at("x"));
        const exact = 4 * valueDim;
        f.call(loadExact, a.out.plus(i32.mul(first, exact)), a.queryHeads.times(exact), n, at("y"));
        f.call(dot, at("x"), at("y"), a.means.plus(i32.add(i32.mul(sequence, a.groups), group).times(LINE)));
      });
    },
    { exported: true },
  );
}

/** dq = scale · the sum of the segments' parts, for `ROW_GROUPS` groups of one head's queries. */
function writeQueryGradient(m: ModuleBuilder, dim: Dimensions): FunctionHandle {
  const { headDim, dtype, d } = dim;
  const buffers = rowBuffers(dim).at;
  const store = writeStoreRows(m, dtype, headDim, d, "store-d");
  const width = headDim * DTYPE_BYTES[dtype];
  const sum = m.function(
    "sum-parts",
    [
      ["parts", "i32"],
      ["stride", "i32"],
      ["count", "i32"],
      ["scale", "f32"],
      ["out", "i32"],
    ],
    (f, parts, stride, count, scale, out) => {
      const total = f.local("v128");
      const [part, left] = f.locals("i32", 2);
      f.for(0, (GROUP * d) / 4, 1, () => {
        total.set(f32x4.const(0));
        part.set(parts);
        left.set(count);
        f.doWhile(() => {
          total.set(f32x4.add(total, v128.load(part)));
          part.add(stride);
          left.set(left.minus(1));
        }, left);
        f.store("v128", out, f32x4.mul(total, f32x4.splat(scale)));
        parts.add(16);
        out.add(16);
      });
    },
  );
  return m.function(
    "query-gradient",
    KERNEL_PARAMS,
    (f, args, item, scratch) => {
      const a = BACKWARD_ARGUMENTS.fieldsAt(args);
      const x = scratch.plus(buffers.x);
      const head = f.local("i32");
      const member = f.local("i32");
      const dqBytes = f.local("i32", i32.mul(a.groups, d * LINE));
      rowGroups(f, a, item, (sequence, group, tokens, first) => {
        // Sequences of query heads; segments stand between key heads and the query heads of one.
        head.set(i32.div(sequence, a.group));
        member.set(i32.rem(sequence, a.group));
        const part = i32.add(i32.mul(i32.mul(head, a.segments), a.group), member);
        const from = i32.add(i32.mul(part, dqBytes), group.times(d * LINE));
        f.call(sum, a.partial.plus(from), i32.mul(a.group, dqBytes), a.segments, a.scale, x);
        f.call(store, x, tokens, a.dq.plus(i32.mul(first, width)), a.queryHeads.times(width));
      });
    },
    { exported: true },
  );
}

/** Walks an item's groups of queries: `sequence` is b · Hq + head, `first` the group's first row in [B, T, Hq]. */
function rowGroups(
  f: FunctionBuilder,
  a: { [K in keyof typeof BACKWARD_ARGUMENTS.fields]: Expr },
  item: Local,
  body: (sequence: Local, group: Local, tokens: Expr, first: Local) => void,
): void {
  const sequence = f.local("i32", i32.div(item, a.rowItems));
  const from = f.local("i32", i32.rem(item, a.rowItems).times(ROW_GROUPS));
  const end = f.local("i32", i32.min(a.groups, from.plus(ROW_GROUPS)));
  const b = f.local("i32", i32.div(sequence, a.queryHeads));
  const head = f.local("i32", i32.rem(sequence, a.queryHeads));
  const first = f.local("i32");
  f.for(from, end, 1, (group) => {
    const t = group.times(GROUP);
    first.set(i32.add(i32.mul(i32.add(i32.mul(b, a.time), t), a.queryHeads), head));
    body(sequence, group, i32.min(GROUP, i32.sub(a.time, t)), first);
  });
}
