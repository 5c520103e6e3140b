import {
  type Expr,
  type FunctionBuilder,
  type FunctionHandle,
  f32,
  f32x4,
  f64,
  f64x2,
  i32,
  i64,
  type ModuleBuilder,
  select,
  v128,
} from "../../../devices/wasm/emitter.js";
import { GROUP } from "../../../devices/wasm/tiles.js";

/** e^x in float64 to about 1e-14 relative; −∞ gives 0 and NaN stays NaN. */
export function exp64(f: FunctionBuilder, x: Expr): Expr {
  const t = f.local("f64", f64.min(709, f64.max(-745, x)));
  const n = f.local("f64", f64.nearest(f64.mul(t, Math.LOG2E)));
  // t − n·ln 2 in two steps, the first exact.
  const r = f.local("f64", f64.sub(f64.sub(t, f64.mul(n, 0.6931471803691238)), f64.mul(n, 1.9082149292705877e-10)));
  let sum: Expr = f64.const(1 / 39916800);
  for (const factorial of [3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1]) {
    sum = f64.add(f64.mul(sum, r), 1 / factorial);
  }
  const bits = i64.shl(i64.add(i64.fromF64(n), 1023), 52);
  return f64.mul(sum, select(f64.const(0), f64.fromBits(bits), f64.lt(n, -1022)));
}

/**
 * The decays of one chunk, all as products of gates g = e^logG in float64, so that a gate of 0 (logG = −∞) makes no
 * NaN and long products lose nothing. With G the running sum from the chunk's start:
 *
 *     g[t]        the gate (f64)
 *     fromStart   e^{G_t}                     what is left of the entering state at t
 *     toEnd       e^{G_end − G_t}             what will be left of t at the chunk's end
 *     inGroup     the same from t's group of 16 on, t's own gate included
 *     toGroupEnd  what will be left of t at the end of its group (f64)
 *     group[i]    the product of a group's gates (f64)
 *     returned    the product of all
 *
 * Arrays are padded to whole groups; the padding holds zeros (gates: ones).
 */
export function writeGates(m: ModuleBuilder): FunctionHandle {
  return m.function(
    "gates",
    [
      ["logG", "i32"],
      ["stride", "i32"],
      ["n", "i32"],
      ["g", "i32"],
      ["fromStart", "i32"],
      ["toEnd", "i32"],
      ["inGroup", "i32"],
      ["toGroupEnd", "i32"],
      ["group", "i32"],
    ],
    (f, logG, stride, n, g, fromStart, toEnd, inGroup, toGroupEnd, group) => {
      const [gate, all, within] = f.locals("f64", 3);
      const padded = f.local("i32", i32.and(n.plus(GROUP - 1), -GROUP));
      all.set(1);
      f.for(0, padded, 1, (t) => {
        const valid = i32.lt(t, n);
        gate.set(1);
        f.if(i32.and(valid, i32.ne(logG, 0)), () => {
          gate.set(exp64(f, f64.fromF32(f32.load(logG))));
          logG.add(stride);
        });
        all.set(f64.mul(all, gate));
        f.if(i32.eqz(i32.and(t, GROUP - 1)), () => within.set(1));
        within.set(f64.mul(within, gate));
        f.store("f64", g.plus(t.times(8)), gate);
        f.store("f32", fromStart.plus(t.times(4)), select(f32.fromF64(all), f32.const(0), valid));
        f.store("f32", inGroup.plus(t.times(4)), f32.fromF64(within));
        f.store("f64", group.plus(i32.shr(t, 4).times(8)), within);
      });
      const [later, inside] = f.locals("f64", 2);
      later.set(1);
      f.for(0, padded, 1, (k) => {
        const t = f.local("i32", i32.sub(padded.minus(1), k));
        gate.set(f64.load(g.plus(t.times(8))));
        f.if(i32.eqz(i32.and(k, GROUP - 1)), () => inside.set(1));
        f.store("f64", toGroupEnd.plus(t.times(8)), inside);
        f.store("f32", toEnd.plus(t.times(4)), select(f32.fromF64(later), f32.const(0), i32.lt(t, n)));
        inside.set(f64.mul(inside, gate));
        later.set(f64.mul(later, gate));
      });
      f.return(all);
    },
    { result: "f64" },
  );
}

/**
 * Moves the decays of earlier keys from the end of group `i` − 2 to the end of group `i` − 1, before queries of group
 * `i`: running[j] *= product of group i − 1, running = toGroupEnd for keys of that group; `decay` is its f32 copy.
 */
export function writeAdvance(m: ModuleBuilder): FunctionHandle {
  return m.function(
    "advance",
    [
      ["i", "i32"],
      ["group", "i32"],
      ["toGroupEnd", "i32"],
      ["running", "i32"],
      ["decay", "i32"],
    ],
    (f, i, group, toGroupEnd, running, decay) => {
      const product = f.local("v128");
      const value = f.local("v128");
      f.if(i32.eqz(i), () => f.return());
      product.set(f64x2.splat(f64.load(group.plus(i.minus(1).times(8)))));
      f.for(0, i.times(GROUP), 2, (j) => {
        const isNew = i32.ge(j, i.minus(1).times(GROUP));
        f.if(
          isNew,
          () => value.set(v128.load(toGroupEnd.plus(j.times(8)))),
          () => value.set(f64x2.mul(product, v128.load(running.plus(j.times(8))))),
        );
        f.store("v128", running.plus(j.times(8)), value);
        f.store64Lane(decay.plus(j.times(4)), f32x4.fromF64(value), 0);
      });
    },
  );
}
