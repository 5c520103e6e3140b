import {
  type Expr,
  type FunctionHandle,
  f32,
  f32x4,
  i32,
  type Local,
  select,
  sumLanes,
  v128,
} from "../../../devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../../../devices/wasm/kernel.js";
import { Layout } from "../../../devices/wasm/layout.js";
import { GROUP, LINE, PANEL } from "../../../devices/wasm/tiles.js";
import { DTYPE_BYTES, type DType } from "../../../tensor/dtype.js";
import { LAYERNORM_EPSILON } from "../contract.js";
import type { Parts } from "./parts.js";
import {
  type ChunkBuffers,
  type ChunkContext,
  type ChunkSizes,
  chunkBuffers,
  chunkGates,
  fillOnes,
  keyFactor,
  NORMALIZE,
  packKeys,
  packQueries,
  packValues,
  panelStride,
  SEQUENCE_FIELDS,
} from "./sequence.js";
import { writeQueryState } from "./state.js";

/** Where states come from and go to. */
export const STATES = {
  none: 0,
  /** One state carried along the sequence. */
  carry: 1,
  /** One for each chunk, [B, N, H, …], read or written on its own. */
  each: 2,
} as const;

interface ForwardBuffers extends ChunkBuffers {
  y: number;
  sums: number;
  weights: number;
}

/** Earlier keys that are weighed at once: their values stay in the first-level cache. */
export const KEY_BLOCK = 4;

export function forwardBuffers(dim: Parts["dim"], sizes: ChunkSizes): { buffers: ForwardBuffers; bytes: number } {
  const layout = new Layout();
  const buffers = {
    ...chunkBuffers(dim, sizes, layout),
    y: layout.take(sizes.group * sizes.groups * GROUP * 4 * dim.e),
    sums: layout.take(sizes.group * sizes.groups * LINE),
    weights: layout.take(KEY_BLOCK * GROUP * LINE),
  };
  return { buffers, bytes: layout.bytes };
}

const BUFFER_NAMES = Object.keys(
  forwardBuffers({ d: 8, e: 8, block: 16 } as Parts["dim"], { groups: 1, group: 1, features: 1 }).buffers,
);

export const FORWARD_ARGUMENTS = new Arguments({
  ...SEQUENCE_FIELDS,
  out: "i32",
  /** [B, T, Hq]: what the backward needs of each row, or the bare sum. */
  rowOut: "i32",
  s0: "i32",
  z0: "i32",
  sN: "i32",
  zN: "i32",
  reads: "i32",
  writes: "i32",
  ...(Object.fromEntries(BUFFER_NAMES.map((name) => [name, "i32"])) as Record<keyof ForwardBuffers, "i32">),
});

/**
 * The forward of power attention and of its parts, for one batch element and key head: chunk by chunk, with one state
 * in the thread's working memory. Each chunk: decays; queries against the state; attention inside; normalise; update.
 */
export function writeForward(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  const query = writeQueryState(parts);
  const update = parts.updateState();
  const load = parts.loadState();
  const store = parts.storeState();
  const finish = writeFinish(parts);
  const inside = writeInside(parts);
  return m.function(
    "forward",
    KERNEL_PARAMS,
    (f, args, item, scratch) => {
      const a = FORWARD_ARGUMENTS.fieldsAt(args);
      const at = (name: keyof ForwardBuffers) => i32.add(scratch, a[name]);
      const b = f.local("i32", i32.div(item, a.heads));
      const h = f.local("i32", i32.rem(item, a.heads));
      const [t0, n, groups, asks] = f.locals("i32", 4);
      const factor = f.local("f32");
      const product = f.local("f32");
      const c: ChunkContext = { f, a, at: at as ChunkContext["at"], b, h, t0, n, groups, keyFactor: factor };
      const stateBytes = i32.mul(a.features, 4);
      const carry = i32.eq(a.reads, STATES.carry);
      const clear = () => {
        f.fill(at("s"), 0, a.features.times(4 * dim.e));
        f.fill(at("z"), 0, a.features.times(16));
      };
      const loadAt = (index: Expr) => {
        const k = f.local("i32", i32.mul(index, stateBytes));
        f.call(load, a.s0.plus(k.times(dim.valueDim)), a.z0.plus(k), a.root, a.features, at("s"), at("z"), 1);
      };
      const storeAt = (index: Expr) => {
        const k = f.local("i32", i32.mul(index, stateBytes));
        const unit = f32.div(1, factor);
        f.call(store, at("s"), at("z"), a.root, a.features, a.sN.plus(k.times(dim.valueDim)), a.zN.plus(k), unit);
      };
      keyFactor(parts, c, factor);
      fillOnes(c);
      f.if(carry, () => {
        f.if(a.s0, () => loadAt(item), clear);
      });
      f.for(0, a.chunks, 1, (chunk) => {
        t0.set(i32.mul(chunk, a.chunk));
        n.set(i32.min(a.chunk, i32.sub(a.time, t0)));
        groups.set(i32.shrU(n.plus(GROUP - 1), 4));
        const ofChunk = () => i32.add(i32.mul(i32.add(i32.mul(b, a.chunks), chunk), a.heads), h);
        chunkGates(parts, c, product);
        f.if(a.q, () => {
          packQueries(parts, c);
          f.fill(at("y"), 0, i32.mul(i32.mul(a.group, groups), GROUP * 4 * dim.e));
          f.fill(at("sums"), 0, i32.mul(i32.mul(a.group, groups), LINE));
        });
        f.if(a.k, () => {
          packKeys(parts, c);
          packValues(parts, c);
        });
        asks.set(i32.or(i32.eq(a.reads, STATES.each), i32.and(carry, i32.or(i32.ne(chunk, 0), i32.ne(a.s0, 0)))));
        f.if(i32.eq(a.reads, STATES.each), () => loadAt(ofChunk()));
        f.if(asks, () => {
          f.call(
            query,
            at("qT"),
            at("fromStart"),
            a.group,
            groups,
            at("s"),
            at("z"),
            a.runs,
            a.starts,
            a.multiplicity,
            a.features,
            at("y"),
            at("sums"),
            at("panels"),
            at("zBlock"),
            at("lines"),
          );
        });
        f.if(a.inside, () => f.call(inside, args, scratch, groups));
        f.if(a.q, () => f.call(finish, args, scratch, b, h, t0, n));
        const more = i32.lt(chunk, a.chunks.minus(1));
        const wanted = i32.or(
          i32.eq(a.writes, STATES.each),
          i32.or(i32.and(carry, more), i32.eq(a.writes, STATES.carry)),
        );
        f.if(wanted, () => {
          f.if(i32.eq(a.writes, STATES.each), clear);
          f.call(
            update,
            at("kT"),
            at("toEnd"),
            at("ones"),
            0,
            at("vPanels"),
            panelStride(c),
            groups,
            product,
            at("s"),
            at("z"),
            a.runs,
            a.starts,
            a.features,
            at("lines"),
          );
          f.if(i32.eq(a.writes, STATES.each), () => storeAt(ofChunk()));
        });
      });
      f.if(i32.eq(a.writes, STATES.carry), () => storeAt(item));
    },
    { exported: true },
  );
}

/** Attention inside the chunk: for each group of queries, blocks of earlier keys, then the group's own. */
function writeInside(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  const scores = parts.groupTimesGroup(dim.headDim, LINE);
  return m.function(
    "inside",
    [
      ["args", "i32"],
      ["scratch", "i32"],
      ["groups", "i32"],
    ],
    (f, args, scratch, groups) => {
      const a = FORWARD_ARGUMENTS.fieldsAt(args);
      const at = (name: keyof ForwardBuffers) => i32.add(scratch, a[name]);
      const stride = panelStride({ groups });
      const [qGroup, y, sums, keys] = f.locals("i32", 4);
      f.for(0, groups, 1, (i) => {
        f.call(parts.advance(), i, at("groupGates"), at("toGroupEnd"), at("running"), at("decay"));
        f.call(parts.diagonalDecay(), at("g").plus(i.times(8 * GROUP)), at("diagonal"), at("mask"));
        f.for(0, a.group, 1, (head) => {
          const index = f.local("i32", i32.add(i32.mul(head, groups), i));
          qGroup.set(at("qT").plus(index.times(dim.d * LINE)));
          y.set(at("y").plus(index.times(GROUP * 4 * dim.e)));
          sums.set(at("sums").plus(index.times(LINE)));
          const inGroup = at("inGroup").plus(i.times(LINE));
          f.for(0, i, KEY_BLOCK, (j) => {
            keys.set(i32.min(KEY_BLOCK, i32.sub(i, j)));
            f.for(0, keys, 1, (k) => {
              const kGroup = at("kT").plus(i32.add(j, k).times(dim.d * LINE));
              f.call(scores, kGroup, qGroup, at("weights").plus(k.times(GROUP * LINE)));
            });
            f.call(parts.weigh(), at("weights"), keys.times(GROUP), at("decay").plus(j.times(LINE)), inGroup, sums);
            const values = at("vPanels").plus(j.times(GROUP * 4 * PANEL));
            f.call(parts.groupTimesPanels(dim.e), at("weights"), values, stride, y, keys.times(GROUP));
          });
          f.call(scores, at("kT").plus(i.times(dim.d * LINE)), qGroup, at("weights"));
          f.call(parts.weighDiagonal(), at("weights"), at("diagonal"), at("mask"), sums);
          const own = at("vPanels").plus(i.times(GROUP * 4 * PANEL));
          f.call(parts.diagonalTimesPanels(dim.e), at("weights"), own, stride, y);
        });
      });
    },
  );
}

/** Normalises the chunk's rows and writes them out, with what the backward needs of each row. */
function writeFinish(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  const normalise = writeLayerNormRow(parts);
  return m.function(
    "finish",
    [
      ["args", "i32"],
      ["scratch", "i32"],
      ["b", "i32"],
      ["h", "i32"],
      ["t0", "i32"],
      ["n", "i32"],
    ],
    (f, args, scratch, b, h, t0, n) => {
      const a = FORWARD_ARGUMENTS.fieldsAt(args);
      const at = (name: keyof ForwardBuffers) => i32.add(scratch, a[name]);
      const [y, sums, head, row, valid]: Local[] = f.locals("i32", 5);
      const [factor, sum] = f.locals("f32", 2);
      y.set(at("y"));
      sums.set(at("sums"));
      const queryHeads = f.local("i32", i32.mul(a.heads, a.group));
      f.for(0, a.group, 1, (k) => {
        head.set(i32.add(i32.mul(h, a.group), k));
        f.for(0, n, GROUP, (t) => {
          row.set(i32.add(i32.mul(i32.add(i32.add(i32.mul(b, a.time), t0), t), queryHeads), head));
          valid.set(i32.min(GROUP, i32.sub(n, t)));
          f.for(0, valid, 1, (r) => {
            sum.set(f32.load(sums.plus(r.times(4))));
            factor.set(sum);
            f.if(i32.eq(a.normalize, NORMALIZE.sum), () => {
              factor.set(select(f32.const(0), f32.div(1, sum), f32.eq(sum, 0)));
            });
            f.if(i32.eq(a.normalize, NORMALIZE.layernorm), () =>
              factor.set(f.value(normalise, y.plus(r.times(4 * dim.e)))),
            );
            f.store("f32", sums.plus(r.times(4)), factor);
            f.if(a.rowOut, () => f.store("f32", a.rowOut.plus(i32.add(row, i32.mul(r, queryHeads)).times(4)), factor));
          });
          f.if(i32.eq(a.normalize, NORMALIZE.sum), () => f.call(parts.scaleRows(dim.e), y, sums));
          const storeAs = (dtype: DType, base: Expr) => {
            const width = dim.valueDim * DTYPE_BYTES[dtype];
            const store = parts.storeRows(dim.valueDim, dim.e, dtype);
            f.call(store, y, valid, base.plus(row.times(width)), queryHeads.times(width));
          };
          storeAs(dim.outDtype, a.out);
          f.if(a.exact, () => storeAs("f32", a.exact));
          y.add(GROUP * 4 * dim.e);
          sums.add(LINE);
        });
      });
    },
  );
}

/** Normalises one row of y in place; returns its standard deviation. */
function writeLayerNormRow(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  const tail = dim.valueDim % 4;
  const vectors = Math.ceil(dim.valueDim / 4);
  return m.function(
    "layer-norm-row",
    [["y", "i32"]],
    (f, y) => {
      const total = f.local("v128", f32x4.const(0));
      const [mean, deviation] = f.locals("f32", 2);
      const [centred, by] = f.locals("v128", 2);
      const keep = f32x4.const(1, tail === 1 ? 0 : 1, tail === 0 || tail > 2 ? 1 : 0, tail === 0 ? 1 : 0);
      f.for(0, vectors, 1, (k) => total.set(f32x4.add(total, v128.load(y.plus(k.times(16))))));
      mean.set(f32.mul(sumLanes(total), 1 / dim.valueDim));
      total.set(f32x4.const(0));
      f.for(0, vectors, 1, (k) => {
        centred.set(f32x4.sub(v128.load(y.plus(k.times(16))), f32x4.splat(mean)));
        f.if(i32.eq(k, vectors - 1), () => centred.set(f32x4.mul(centred, keep)));
        f.store("v128", y.plus(k.times(16)), centred);
        total.set(m.madd(centred, centred, total));
      });
      deviation.set(f32.sqrt(f32.mul(sumLanes(total), 1 / dim.valueDim)));
      by.set(f32x4.splat(f32.div(1, f32.add(deviation, LAYERNORM_EPSILON))));
      f.for(0, vectors, 1, (k) => f.store("v128", y.plus(k.times(16)), f32x4.mul(by, v128.load(y.plus(k.times(16))))));
      f.return(deviation);
    },
    { result: "f32" },
  );
}
