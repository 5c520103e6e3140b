import {
  type Expr,
  type FunctionBuilder,
  type FunctionHandle,
  f32,
  i32,
  select,
  v128,
} from "../../../devices/wasm/emitter.js";
import { KERNEL_PARAMS } from "../../../devices/wasm/kernel.js";
import { GROUP, LINE, PANEL } from "../../../devices/wasm/tiles.js";
import { BACKWARD_ARGUMENTS, type BackwardBuffer } from "./backward-buffers.js";
import { writeInsideGradient } from "./backward-inside.js";
import { writeGateGradient, writeStoreKeys, writeStoreQueries } from "./backward-store.js";
import { headPanels, writePackUpstream } from "./backward-upstream.js";
import { STATES } from "./forward.js";
import type { Parts } from "./parts.js";
import {
  type ChunkContext,
  chunkGates,
  fillOnes,
  keyFactor,
  packKeys,
  packQueries,
  packValues,
  panelStride,
} from "./sequence.js";
import { writeDotStates, writeReadGradient } from "./state.js";

/**
 * The backward of power attention and of its parts, for one batch element and key head.
 *
 * First pass, forward in time, where a state is read: the state is made again, chunk by chunk, and
 * dq = Jφ(q)ᵀ (s dy + z dsum). Second pass, backward in time: attention inside the chunk; dk and dv from the gradient of
 * the state that leaves the chunk; then that gradient moves to the chunk's start, ds = decay·ds + Σ φ(q) dyᵀ.
 */
export function writeBackward(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  const update = parts.updateState();
  const load = parts.loadState();
  const store = parts.storeState();
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
      const at = (name: BackwardBuffer) => i32.add(scratch, a[name]);
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
      const clear = (s: BackwardBuffer, z: BackwardBuffer) => {
        f.fill(at(s), 0, a.features.times(4 * dim.e));
        f.fill(at(z), 0, a.features.times(16));
      };
      const loadState = (s: Expr, z: Expr, index: Expr, sTo: BackwardBuffer, zTo: BackwardBuffer, unit: Expr) => {
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

/** out[t] += ⟨x_t, dx_t⟩ / p, over heads: by Euler, the sum of the weights' terms that token t has part in. */
function dotGroups(parts: Parts, f: FunctionBuilder, x: Expr, dx: Expr, out: Expr, heads: Expr, groups: Expr): void {
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
