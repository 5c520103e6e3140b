import {
  type Expr,
  type FunctionHandle,
  f32,
  f32x4,
  f64,
  i32,
  type Local,
  select,
  v128,
} from "../../../devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../../../devices/wasm/kernel.js";
import { LAYERNORM_EPSILON } from "../contract.js";
import { STATES } from "./forward.js";
import { BLOCK_ROW } from "./intra.js";
import type { Parts } from "./parts.js";
import {
  type ChunkBuffers,
  type ChunkContext,
  type ChunkSizes,
  chunkBuffers,
  chunkGates,
  fillOnes,
  keyFactor,
  Layout,
  NORMALIZE,
  packKeys,
  packQueries,
  packValues,
  panelStride,
  SEQUENCE_FIELDS,
} from "./sequence.js";
import { writeDotStates, writeLoadState, writeReadGradient, writeStoreState, writeUpdateState } from "./state.js";
import { GROUP, LINE, PANEL } from "./tiles.js";

/** Groups of queries, and of keys, whose weights are in memory at once: 64 × 64. */
const BLOCK = 4;

interface BackwardBuffers extends ChunkBuffers {
  /** dŜ and dẑ, in the state's working form. */
  ds: number;
  dz: number;
  /** dq of each chunk, transposed, from the first pass. */
  dqT: number;
  qFactors: number;
  qPanels: number;
  kPanels: number;
  vT: number;
  /** v times toEnd. */
  vDecayed: number;
  dyT: number;
  dyPanels: number;
  dSum: number;
  outRows: number;
  stateRows: number;
  dkT: number;
  dk: number;
  dv: number;
  dq: number;
  scores: number;
  dWeights: number;
  /** Terms of the gates' gradient, a number a token: see `writeGateGradient`. */
  qInter: number;
  qTotal: number;
  kInter: number;
  kTotal: number;
}

export function backwardBuffers(
  dim: Parts["dim"],
  sizes: ChunkSizes & { chunks: number; states: boolean },
): { buffers: BackwardBuffers; bytes: number } {
  const layout = new Layout();
  const shared = chunkBuffers(dim, sizes, layout);
  const tokens = sizes.groups * GROUP;
  const queries = sizes.group * tokens;
  const chunkDq = queries * 4 * dim.d;
  const features = Math.ceil(sizes.features / GROUP) * GROUP;
  const buffers = {
    ...shared,
    // One array for each group of queries of a block.
    decay: layout.take(BLOCK * 4 * tokens),
    diagonal: layout.take(BLOCK * GROUP * LINE),
    mask: layout.take(BLOCK * GROUP * LINE),
    ds: layout.take(features * 4 * dim.e),
    dz: layout.take(features * 16),
    dqT: layout.take(sizes.states ? sizes.chunks * chunkDq : chunkDq),
    qFactors: layout.take(4 * queries),
    qPanels: layout.take(chunkDq),
    kPanels: layout.take(tokens * 4 * dim.d),
    vT: layout.take(tokens * 4 * dim.e),
    vDecayed: layout.take(tokens * 4 * dim.e),
    dyT: layout.take(queries * 4 * dim.e),
    dyPanels: layout.take(queries * 4 * dim.e),
    dSum: layout.take(4 * queries),
    outRows: layout.take(GROUP * 4 * dim.e),
    stateRows: layout.take(dim.block * 4 * dim.e),
    dkT: layout.take(tokens * 4 * dim.d),
    dk: layout.take(tokens * 4 * dim.d),
    dv: layout.take(tokens * 4 * dim.e),
    dq: layout.take(chunkDq),
    scores: layout.take(BLOCK * GROUP * BLOCK_ROW),
    dWeights: layout.take(BLOCK * GROUP * BLOCK_ROW),
    qInter: layout.take(sizes.states ? sizes.chunks * 4 * tokens : 4 * tokens),
    qTotal: layout.take(4 * tokens),
    kInter: layout.take(4 * tokens),
    kTotal: layout.take(4 * tokens),
  };
  return { buffers, bytes: layout.bytes };
}

type BufferName = keyof BackwardBuffers;

const BUFFER_NAMES = Object.keys(
  backwardBuffers({ d: 8, e: 8, block: 16 } as Parts["dim"], {
    groups: 1,
    group: 1,
    features: 1,
    chunks: 1,
    states: false,
  }).buffers,
);

export const BACKWARD_ARGUMENTS = new Arguments({
  ...SEQUENCE_FIELDS,
  out: "i32",
  dOut: "i32",
  /** [B, T, Hq]: what the forward left of each row; or the upstream gradient of bare sums. */
  rowIn: "i32",
  dSumIn: "i32",
  s0: "i32",
  z0: "i32",
  /** Upstream gradients of the states that the forward wrote. */
  dsN: "i32",
  dzN: "i32",
  dqOut: "i32",
  dkOut: "i32",
  dvOut: "i32",
  dLogG: "i32",
  /** Gradients of the states that the forward read. */
  ds0: "i32",
  dz0: "i32",
  reads: "i32",
  writes: "i32",
  ...(Object.fromEntries(BUFFER_NAMES.map((name) => [name, "i32"])) as Record<BufferName, "i32">),
});

/**
 * The backward of power attention and of its parts, for one batch element and key head.
 *
 * First pass, forward in time, where a state is read: the state is made again, chunk by chunk, and
 * dq = Jφ(q)ᵀ (s dy + z dsum). Second pass, backward in time: attention inside the chunk; dk and dv from the gradient of
 * the state that leaves the chunk; then that gradient moves to the chunk's start, ds = decay·ds + Σ φ(q) dyᵀ.
 */
export function writeBackward(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  const update = writeUpdateState(parts);
  const load = writeLoadState(parts);
  const store = writeStoreState(parts);
  const dotStates = writeDotStates(parts);
  const readQueries = writeReadGradient(parts, false);
  const readKeys = writeReadGradient(parts, true);
  const upstream = writePackUpstream(parts);
  const inside = writeInsideGradient(parts);
  const gateGradient = writeGateGradient(parts);
  const storeKeys = writeStoreKeys(parts);
  const storeQueries = writeStoreQueries(parts);
  return m.function(
    "backward",
    KERNEL_PARAMS,
    (f, args, item, scratch) => {
      const a = BACKWARD_ARGUMENTS.fieldsAt(args);
      const at = (name: BufferName) => i32.add(scratch, a[name]);
      const b = f.local("i32", i32.div(item, a.heads));
      const h = f.local("i32", i32.rem(item, a.heads));
      const [t0, n, groups, queries, perChunk, chunk] = f.locals("i32", 6);
      const [factor, product] = f.locals("f32", 2);
      const through = f.local("f64", 0);
      const c: ChunkContext = { f, a, at: at as ChunkContext["at"], b, h, t0, n, groups, keyFactor: factor };
      const stateBytes = i32.mul(a.features, 4);
      const carry = i32.eq(a.reads, STATES.carry);
      const ofChunk = () => i32.add(i32.mul(i32.add(i32.mul(b, a.chunks), chunk), a.heads), h);
      const enter = () => {
        t0.set(i32.mul(chunk, a.chunk));
        n.set(i32.min(a.chunk, i32.sub(a.time, t0)));
        groups.set(i32.shrU(n.plus(GROUP - 1), 4));
        queries.set(i32.mul(a.group, groups));
        chunkGates(parts, c, product);
      };
      const clear = (s: BufferName, z: BufferName) => {
        f.fill(at(s), 0, a.features.times(4 * dim.e));
        f.fill(at(z), 0, a.features.times(16));
      };
      const loadState = (s: Expr, z: Expr, index: Expr, sTo: BufferName, zTo: BufferName, unit: Expr) => {
        const k = f.local("i32", i32.mul(index, stateBytes));
        f.call(load, s.plus(k.times(dim.valueDim)), z.plus(k), a.root, a.features, at(sTo), at(zTo), unit);
      };
      const tables = [a.runs, a.starts] as const;
      /** Where the first pass leaves dq and its share of the gates' gradient for this chunk. */
      const dqChunk = () => at("dqT").plus(i32.mul(i32.mul(chunk, a.group), i32.mul(perChunk, dim.d * LINE)));
      const qInterChunk = () => at("qInter").plus(i32.mul(chunk, perChunk.times(LINE)));
      const packQ = (panels: boolean) =>
        packQueries(parts, c, (index, rows) => {
          for (let k = 0; k < 4; k++) {
            f.store("v128", at("qFactors").plus(index.times(LINE)), v128.load(at("factors"), 16 * k), 16 * k);
          }
          if (!panels) return;
          f.call(parts.panels(dim.d), rows, headPanels(f, at("qPanels"), index, groups, dim.d), panelStride(c));
        });

      perChunk.set(i32.shrU(a.chunk.plus(GROUP - 1), 4));
      keyFactor(parts, c, factor);
      fillOnes(c);

      f.if(i32.ne(a.reads, STATES.none), () => {
        f.if(carry, () => {
          f.if(
            a.s0,
            () => loadState(a.s0, a.z0, item, "s", "z", f32.const(1)),
            () => clear("s", "z"),
          );
        });
        f.for(
          0,
          a.chunks,
          1,
          () => {
            enter();
            f.fill(dqChunk(), 0, queries.times(dim.d * LINE));
            f.fill(qInterChunk(), 0, groups.times(LINE));
            const asks = i32.or(i32.eq(a.reads, STATES.each), i32.or(i32.ne(chunk, 0), i32.ne(a.s0, 0)));
            f.if(i32.eq(a.reads, STATES.each), () => loadState(a.s0, a.z0, ofChunk(), "s", "z", f32.const(1)));
            f.if(asks, () => {
              packQ(false);
              f.call(upstream, args, scratch, b, h, t0, n, 1);
              f.call(
                readQueries,
                at("qT"),
                0,
                at("dyT"),
                at("dSum"),
                a.group,
                groups,
                at("s"),
                at("z"),
                ...tables,
                a.multiplicity,
                a.features,
                dqChunk(),
                0,
                at("panels"),
                at("stateRows"),
                at("zBlock"),
                at("lines"),
              );
              dotGroups(parts, f, at("qT"), dqChunk(), qInterChunk(), a.group, groups);
            });
            f.if(i32.and(carry, i32.or(i32.lt(chunk, a.chunks.minus(1)), i32.ne(a.dsN, 0))), () => {
              packKeys(parts, c);
              packValues(parts, c);
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
                ...tables,
                a.features,
                at("lines"),
              );
            });
          },
          chunk,
        );
      });

      const unit = f.local("f32", f32.div(1, factor));
      f.if(i32.or(i32.ne(a.reads, STATES.none), i32.ne(a.writes, STATES.none)), () => clear("ds", "dz"));
      f.if(i32.eq(a.writes, STATES.carry), () => {
        f.if(a.dsN, () => {
          loadState(a.dsN, a.dzN, item, "ds", "dz", unit);
          through.set(f.value(dotStates, at("s"), at("z"), at("ds"), at("dz"), a.multiplicity, a.features));
        });
      });
      chunk.set(a.chunks.minus(1));
      f.while(i32.ge(chunk, 0), () => {
        enter();
        f.fill(at("kInter"), 0, groups.times(LINE));
        f.fill(at("kTotal"), 0, groups.times(LINE));
        f.fill(at("qTotal"), 0, groups.times(LINE));
        f.if(i32.eq(a.reads, STATES.none), () => f.fill(qInterChunk(), 0, groups.times(LINE)));
        f.if(a.q, () => {
          packQ(true);
          f.call(upstream, args, scratch, b, h, t0, n, 0);
        });
        f.if(a.k, () => {
          packKeys(parts, c, (g, rows) => {
            f.call(parts.panels(dim.d), rows, at("kPanels").plus(g.times(GROUP * 4 * PANEL)), panelStride(c));
          });
          packValues(parts, c, (g, rows) => {
            f.call(parts.transpose(dim.e), rows, at("vT").plus(g.times(dim.e * LINE)));
            f.call(parts.scaleRows(dim.e), rows, at("toEnd").plus(g.times(LINE)));
            f.call(parts.transpose(dim.e), rows, at("vDecayed").plus(g.times(dim.e * LINE)));
          });
          f.fill(at("dkT"), 0, groups.times(dim.d * LINE));
          f.fill(at("dv"), 0, groups.times(GROUP * 4 * dim.e));
          f.if(i32.eq(a.writes, STATES.each), () => loadState(a.dsN, a.dzN, ofChunk(), "ds", "dz", f32.const(1)));
          const leaves = i32.or(
            i32.eq(a.writes, STATES.each),
            i32.and(carry, i32.or(i32.lt(chunk, a.chunks.minus(1)), i32.ne(a.dsN, 0))),
          );
          f.if(leaves, () => {
            f.call(
              readKeys,
              at("kT"),
              at("toEnd"),
              at("vDecayed"),
              at("toEnd"),
              1,
              groups,
              at("ds"),
              at("dz"),
              ...tables,
              a.multiplicity,
              a.features,
              at("dkT"),
              at("dv"),
              at("panels"),
              at("stateRows"),
              at("zBlock"),
              at("lines"),
            );
            dotGroups(parts, f, at("kT"), at("dkT"), at("kInter"), i32.const(1), groups);
          });
          f.for(0, groups, 1, (g) => {
            const lines = at("dkT").plus(g.times(dim.d * LINE));
            f.call(parts.untranspose(dim.d), lines, at("dk").plus(g.times(GROUP * 4 * dim.d)));
          });
        });
        f.if(a.q, () => {
          const fromPass = i32.ne(a.reads, STATES.none);
          f.for(0, queries, 1, (g) => {
            const rows = at("dq").plus(g.times(GROUP * 4 * dim.d));
            f.if(
              fromPass,
              () => f.call(parts.untranspose(dim.d), dqChunk().plus(g.times(dim.d * LINE)), rows),
              () => f.fill(rows, 0, GROUP * 4 * dim.d),
            );
          });
        });
        f.if(a.inside, () => f.call(inside, args, scratch, groups));
        f.if(a.q, () => f.call(storeQueries, args, scratch, b, h, t0, n));
        f.if(a.k, () => f.call(storeKeys, args, scratch, b, h, t0, n, factor));
        f.if(a.dLogG, () => {
          through.set(f.value(gateGradient, args, scratch, b, h, t0, n, qInterChunk(), through));
        });
        const moves = i32.or(i32.eq(a.reads, STATES.each), i32.and(carry, i32.or(i32.ne(chunk, 0), i32.ne(a.ds0, 0))));
        f.if(moves, () => {
          f.if(i32.eq(a.reads, STATES.each), () => clear("ds", "dz"));
          // Query heads one after another into the same state: only the first one decays what is there.
          f.for(0, a.group, 1, (head) => {
            const first = i32.mul(head, groups);
            f.call(
              update,
              at("qT").plus(first.times(dim.d * LINE)),
              at("fromStart"),
              at("dSum").plus(first.times(LINE)),
              LINE,
              at("dyPanels").plus(first.times(GROUP * 4 * dim.e)),
              panelStride(c),
              groups,
              select(f32.const(1), product, head),
              at("ds"),
              at("dz"),
              ...tables,
              a.features,
              at("lines"),
            );
          });
          f.if(i32.eq(a.reads, STATES.each), () => storeAt(ofChunk()));
        });
        chunk.set(chunk.minus(1));
      });
      f.if(i32.and(carry, i32.ne(a.ds0, 0)), () => storeAt(item));

      function storeAt(index: Expr): void {
        const k = f.local("i32", i32.mul(index, stateBytes));
        f.call(store, at("ds"), at("dz"), a.root, a.features, a.ds0.plus(k.times(dim.valueDim)), a.dz0.plus(k), 1);
      }
    },
    { exported: true },
  );
}

/** Panels of query head ⌊index / groups⌋, at the row of its group. */
function headPanels(f: Local["owner"], base: Expr, index: Expr, groups: Expr, columns: number): Expr {
  const head = f.local("i32", i32.div(index, groups));
  const within = i32.sub(index, i32.mul(head, groups));
  return base.plus(i32.mul(head, groups.times(GROUP * 4 * columns))).plus(within.times(GROUP * 4 * PANEL));
}

/** out[t] += ⟨x_t, dx_t⟩ / p, over heads: by Euler, the sum of the weights' terms that token t has part in. */
function dotGroups(parts: Parts, f: Local["owner"], x: Expr, dx: Expr, out: Expr, heads: Expr, groups: Expr): void {
  const { d, degree } = parts.dim;
  const index = f.local("i32", 0);
  f.for(0, heads, 1, () => {
    f.for(0, groups, 1, (g) => {
      const at = index.times(d * LINE);
      f.call(parts.dotLines(), x.plus(at), dx.plus(at), d, out.plus(g.times(LINE)), 1 / degree);
      index.add(1);
    });
  });
}

/**
 * The gradients of y and of the row sums, from those of the output, for the chunk's query heads: dyT transposed,
 * dyPanels, dSum. `decayed`: times fromStart, as the first pass wants them.
 */
function writePackUpstream(parts: Parts): FunctionHandle {
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
      const at = (name: BufferName) => i32.add(scratch, a[name]);
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
  const total = (v: Local) =>
    f32.add(f32.add(f32x4.extract(v, 0), f32x4.extract(v, 1)), f32.add(f32x4.extract(v, 2), f32x4.extract(v, 3)));
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
          f.store("f32", dSum, f32.neg(f32.mul(saved, total(dot))));
        },
        () => {
          wide.set(f32.add(saved, LAYERNORM_EPSILON));
          const c = f32.mul(f32.mul(total(dot), 1 / dim.valueDim), f32.div(wide, saved));
          along.set(f32x4.splat(select(f32.const(0), c, f32.eq(saved, 0))));
          shift.set(f32x4.splat(f32.mul(total(sum), 1 / dim.valueDim)));
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

/** Attention inside the chunk, backward: blocks of 64 queries by 64 keys; five products each. */
function writeInsideGradient(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  const scores = parts.groupTimesGroup(dim.headDim, BLOCK_ROW);
  const dWeights = parts.groupTimesGroup(dim.valueDim, BLOCK_ROW);
  const toValues = parts.rowsTimesPanels(dim.e, BLOCK_ROW);
  const toKeys = parts.rowsTimesPanels(dim.d, BLOCK_ROW);
  const toQueries = parts.groupTimesPanels(dim.d, BLOCK_ROW);
  return m.function(
    "inside-gradient",
    [
      ["args", "i32"],
      ["scratch", "i32"],
      ["groups", "i32"],
    ],
    (f, args, scratch, groups) => {
      const a = BACKWARD_ARGUMENTS.fieldsAt(args);
      const at = (name: BufferName) => i32.add(scratch, a[name]);
      const stride = f.local("i32", panelStride({ groups }));
      const [width, height, first, index, key, query, block] = f.locals("i32", 7);
      const arrays = f.local("i32", groups.times(LINE));
      f.for(0, groups, BLOCK, (i) => {
        width.set(i32.min(BLOCK, i32.sub(groups, i)));
        f.for(0, width, 1, (k) => {
          const g = f.local("i32", i32.add(i, k));
          f.call(
            parts.advance(),
            g,
            at("groupGates"),
            at("toGroupEnd"),
            at("running"),
            at("decay").plus(i32.mul(k, arrays)),
          );
          const own = k.times(GROUP * LINE);
          f.call(
            parts.diagonalDecay(),
            at("g").plus(g.times(8 * GROUP)),
            at("diagonal").plus(own),
            at("mask").plus(own),
          );
        });
        f.for(0, a.group, 1, (head) => {
          first.set(i32.mul(head, groups));
          f.for(0, i32.add(i, width), BLOCK, (j) => {
            height.set(i32.min(BLOCK, i32.sub(i32.add(i, width), j)));
            f.for(0, height, 1, (kj) => {
              key.set(i32.add(j, kj));
              f.for(0, width, 1, (ki) => {
                query.set(i32.add(i, ki));
                f.if(i32.le(key, query), () => {
                  index.set(i32.add(first, query));
                  block.set(i32.add(kj.times(GROUP * BLOCK_ROW), ki.times(LINE)));
                  const s = at("scores").plus(block);
                  const dw = at("dWeights").plus(block);
                  f.call(scores, at("kT").plus(key.times(dim.d * LINE)), at("qT").plus(index.times(dim.d * LINE)), s);
                  f.call(
                    dWeights,
                    at("vT").plus(key.times(dim.e * LINE)),
                    at("dyT").plus(index.times(dim.e * LINE)),
                    dw,
                  );
                  const dSum = at("dSum").plus(index.times(LINE));
                  f.if(
                    i32.lt(key, query),
                    () => {
                      const decay = at("decay").plus(i32.mul(ki, arrays)).plus(key.times(LINE));
                      f.call(parts.weighGradient(), s, dw, GROUP, decay, at("inGroup").plus(query.times(LINE)), dSum);
                    },
                    () => {
                      const own = ki.times(GROUP * LINE);
                      f.call(
                        parts.weighGradientDiagonal(),
                        s,
                        dw,
                        at("diagonal").plus(own),
                        at("mask").plus(own),
                        dSum,
                      );
                    },
                  );
                });
              });
              // Queries of the block from the key's own group on.
              const skip = f.local("i32", i32.max(0, i32.sub(key, i)));
              const from = f.local("i32", i32.add(i, skip));
              const n = f.local("i32", i32.sub(width, skip).times(GROUP));
              const rows = i32.add(kj.times(GROUP * BLOCK_ROW), skip.times(LINE));
              const dyPanels = at("dyPanels")
                .plus(first.times(GROUP * 4 * dim.e))
                .plus(from.times(GROUP * 4 * PANEL));
              const qPanels = at("qPanels")
                .plus(first.times(GROUP * 4 * dim.d))
                .plus(from.times(GROUP * 4 * PANEL));
              f.call(
                toValues,
                at("scores").plus(rows),
                dyPanels,
                stride,
                at("dv").plus(key.times(GROUP * 4 * dim.e)),
                4,
                n,
                1,
              );
              f.call(
                toKeys,
                at("dWeights").plus(rows),
                qPanels,
                stride,
                at("dk").plus(key.times(GROUP * 4 * dim.d)),
                4,
                n,
                1,
              );
            });
            f.for(0, width, 1, (ki) => {
              query.set(i32.add(i, ki));
              const keys = f.local("i32", i32.min(height, i32.sub(query.plus(1), j)));
              const dq = at("dq").plus(i32.add(first, query).times(GROUP * 4 * dim.d));
              const kPanels = at("kPanels").plus(j.times(GROUP * 4 * PANEL));
              f.call(toQueries, at("dWeights").plus(ki.times(LINE)), kPanels, stride, dq, keys.times(GROUP));
            });
          });
        });
      });
    },
  );
}

/** dq of the chunk, put back into the rows' own units; also its terms of the gates' gradient. */
function writeStoreQueries(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  const bytes = dim.dtype === "f32" ? 4 : 2;
  return m.function(
    "store-queries",
    [
      ["args", "i32"],
      ["scratch", "i32"],
      ["b", "i32"],
      ["h", "i32"],
      ["t0", "i32"],
      ["n", "i32"],
    ],
    (f, args, scratch, b, h, t0, n) => {
      const a = BACKWARD_ARGUMENTS.fieldsAt(args);
      const at = (name: BufferName) => i32.add(scratch, a[name]);
      const index = f.local("i32", 0);
      const queryHeads = f.local("i32", i32.mul(a.heads, a.group));
      f.for(0, a.group, 1, (k) => {
        f.for(0, n, GROUP, (t) => {
          const rows = f.local("i32", at("dq").plus(index.times(GROUP * 4 * dim.d)));
          f.if(a.dLogG, () => {
            // dkT has been taken over into dk: it is free to hold a group.
            f.call(parts.transpose(dim.d), rows, at("dkT"));
            const x = at("qT").plus(index.times(dim.d * LINE));
            f.call(parts.dotLines(), x, at("dkT"), dim.d, at("qTotal").plus(t.times(4)), 1 / dim.degree);
          });
          f.call(parts.scaleRows(dim.d), rows, at("qFactors").plus(index.times(LINE)));
          const token = i32.add(i32.add(i32.mul(b, a.time), t0), t);
          const row = f.local("i32", i32.add(i32.mul(token, queryHeads), i32.add(i32.mul(h, a.group), k)));
          f.call(
            parts.storeRows(dim.headDim, dim.d),
            rows,
            i32.min(GROUP, i32.sub(n, t)),
            a.dqOut.plus(row.times(dim.headDim * bytes)),
            queryHeads.times(dim.headDim * bytes),
          );
          index.add(1);
        });
      });
    },
  );
}

/** dk and dv of the chunk; also their terms of the gates' gradient. */
function writeStoreKeys(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  const bytes = dim.dtype === "f32" ? 4 : 2;
  return m.function(
    "store-keys",
    [
      ["args", "i32"],
      ["scratch", "i32"],
      ["b", "i32"],
      ["h", "i32"],
      ["t0", "i32"],
      ["n", "i32"],
      ["factor", "f32"],
    ],
    (f, args, scratch, b, h, t0, n, factor) => {
      const a = BACKWARD_ARGUMENTS.fieldsAt(args);
      const at = (name: BufferName) => i32.add(scratch, a[name]);
      const by = f.local("v128", f32x4.splat(factor));
      for (let k = 0; k < 4; k++) f.store("v128", at("factors"), by, 16 * k);
      f.for(0, n, GROUP, (t) => {
        const dk = f.local("i32", at("dk").plus(t.times(4 * dim.d)));
        const row = f.local("i32", i32.add(i32.mul(i32.add(i32.add(i32.mul(b, a.time), t0), t), a.heads), h));
        const valid = f.local("i32", i32.min(GROUP, i32.sub(n, t)));
        f.if(a.dLogG, () => {
          f.call(parts.transpose(dim.d), dk, at("dkT"));
          const x = at("kT").plus(t.times(4 * dim.d));
          f.call(parts.dotLines(), x, at("dkT"), dim.d, at("kTotal").plus(t.times(4)), 1 / dim.degree);
        });
        f.call(parts.scaleRows(dim.d), dk, at("factors"));
        const width = dim.headDim * bytes;
        f.call(parts.storeRows(dim.headDim, dim.d), dk, valid, a.dkOut.plus(row.times(width)), a.heads.times(width));
        const wide = dim.valueDim * bytes;
        const dv = at("dv").plus(t.times(4 * dim.e));
        f.call(parts.storeRows(dim.valueDim, dim.e), dv, valid, a.dvOut.plus(row.times(wide)), a.heads.times(wide));
      });
    },
  );
}

/**
 * The gates' gradient within the chunk. With Q_i and K_j the sums of all terms w·dw that token i has part in as a query
 * and token j as a key, each split into terms inside the chunk and terms through the state,
 *     dlogG_t = Σ_{i≥t} (Q_i − K_i inside) + Σ_{j<t} K_j through the state + X
 * X being what passes from the entering to the leaving state: Σ entering·d(entering) = X + Σ Q_i through the state, and
 * Σ leaving·d(leaving) = X + Σ K_j through the state. `through` is the latter; the former is returned.
 */
function writeGateGradient(parts: Parts): FunctionHandle {
  const { m } = parts;
  return m.function(
    "gate-gradient",
    [
      ["args", "i32"],
      ["scratch", "i32"],
      ["b", "i32"],
      ["h", "i32"],
      ["t0", "i32"],
      ["n", "i32"],
      ["qInter", "i32"],
      ["through", "f64"],
    ],
    (f, args, scratch, b, h, t0, n, qInter, through) => {
      const a = BACKWARD_ARGUMENTS.fieldsAt(args);
      const at = (name: BufferName) => i32.add(scratch, a[name]);
      const [earlier, total, queries] = f.locals("f64", 3);
      const kInter = f.local("f64");
      const [t, target] = f.locals("i32", 2);
      const load = (base: Expr, k: Expr) => f64.fromF32(f32.load(base.plus(k.times(4))));
      f.for(0, n, 1, (k) => {
        earlier.set(f64.add(earlier, load(at("kInter"), k)));
        queries.set(f64.add(queries, load(qInter, k)));
      });
      const passing = f.local("f64", 0);
      f.if(i32.eq(a.reads, STATES.carry), () => passing.set(f64.sub(through, earlier)));
      f.for(0, n, 1, (k) => {
        t.set(i32.sub(n.minus(1), k));
        kInter.set(load(at("kInter"), t));
        earlier.set(f64.sub(earlier, kInter));
        total.set(f64.add(total, f64.sub(load(at("qTotal"), t), f64.sub(load(at("kTotal"), t), kInter))));
        const row = i32.add(i32.mul(b, a.time), i32.add(t0, t));
        target.set(a.dLogG.plus(i32.add(i32.mul(row, a.heads), h).times(4)));
        f.store("f32", target, f32.fromF64(f64.add(f64.add(total, earlier), passing)));
      });
      // Nothing comes before the first token, so its gate decays nothing.
      const alone = i32.and(i32.eqz(t0), i32.and(i32.eqz(a.s0), i32.ne(a.reads, STATES.each)));
      f.if(alone, () => f.store("f32", target, 0));
      f.return(f64.add(passing, queries));
    },
    { result: "f64" },
  );
}
