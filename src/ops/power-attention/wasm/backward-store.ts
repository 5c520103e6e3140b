import { type Expr, type FunctionHandle, f32, f32x4, f64, i32 } from "../../../devices/wasm/emitter.js";
import { GROUP, LINE } from "../../../devices/wasm/tiles.js";
import { BACKWARD_ARGUMENTS, type BackwardBuffer } from "./backward-buffers.js";
import { STATES } from "./forward.js";
import type { Parts } from "./parts.js";

/** dq of the chunk, put back into the rows' own units; also its terms of the gates' gradient. */
export function writeStoreQueries(parts: Parts): FunctionHandle {
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
      const at = (name: BackwardBuffer) => i32.add(scratch, a[name]);
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
export function writeStoreKeys(parts: Parts): FunctionHandle {
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
      const at = (name: BackwardBuffer) => i32.add(scratch, a[name]);
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
export function writeGateGradient(parts: Parts): FunctionHandle {
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
      const at = (name: BackwardBuffer) => i32.add(scratch, a[name]);
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
