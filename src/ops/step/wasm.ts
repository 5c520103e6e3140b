import { load1, load4, store1 } from "../../devices/wasm/convert.js";
import { addressOf, wasmDevice } from "../../devices/wasm/device.js";
import {
  type Expr,
  type FunctionBuilder,
  type FunctionHandle,
  f32,
  f32x4,
  f64,
  i32,
  type Local,
  type ModuleBuilder,
  select,
  sumLanes,
  v128,
} from "../../devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../../devices/wasm/kernel.js";
import { writeReciprocalPower } from "../../devices/wasm/pack.js";
import { LINE, roundUp } from "../../devices/wasm/tiles.js";
import { DTYPE_BYTES, type DType } from "../../tensor/dtype.js";
import { empty } from "../../tensor/tensor.js";
import { LAYERNORM_EPSILON } from "../power-attention/contract.js";
import { exp64 } from "../power-attention/wasm/gates.js";
import { NO_TABLES, runForward, tablesOf } from "../power-attention/wasm/run.js";
import { NORMALIZE } from "../power-attention/wasm/sequence.js";
import type { FoldTail, StepForward, StepPlan } from "./contract.js";

const ARGUMENTS = new Arguments({
  q: "i32",
  k: "i32",
  v: "i32",
  logG: "i32",
  qBatch: "i32",
  qTime: "i32",
  qHead: "i32",
  kBatch: "i32",
  kTime: "i32",
  kHead: "i32",
  vBatch: "i32",
  vTime: "i32",
  vHead: "i32",
  heads: "i32",
  group: "i32",
  tokens: "i32",
  tail: "i32",
  capacity: "i32",
  tailK: "i32",
  tailV: "i32",
  tailG: "i32",
  s: "i32",
  z: "i32",
  features: "i32",
  runs: "i32",
  runCount: "i32",
  root: "i32",
  normalize: "i32",
  scale: "f32",
  out: "i32",
  // Offsets in the thread's working memory.
  row: "i32",
  y: "i32",
  phi: "i32",
  gates: "i32",
});

type Args = { [K in keyof typeof ARGUMENTS.fields]: Expr };

/** Copies one row of `width` elements as f32. */
function copyRow(f: FunctionBuilder, dtype: DType, width: number, from: Expr, to: Expr): void {
  const bytes = DTYPE_BYTES[dtype];
  const whole = Math.floor(width / 4);
  f.for(0, whole, 1, (c) => {
    f.store("v128", to.plus(c.times(16)), load4(f, dtype, from.plus(c.times(4 * bytes))));
  });
  for (let c = 4 * whole; c < width; c++) f.store("f32", to, load1(f, dtype, from, c * bytes), 4 * c);
}

/** x · y for two rows of f32. */
function writeDot(m: ModuleBuilder, width: number): FunctionHandle {
  return m.function(
    "dot",
    [
      ["x", "i32"],
      ["y", "i32"],
    ],
    (f, x, y) => {
      const sum = f.local("v128", f32x4.const(0));
      const total = f.local("f32");
      f.for(0, Math.floor(width / 4), 1, () => {
        sum.set(m.madd(v128.load(x), v128.load(y), sum));
        x.add(16);
        y.add(16);
      });
      total.set(sumLanes(sum));
      for (let c = 0; c < width % 4; c++) total.set(f32.add(total, f32.mul(f32.load(x, 4 * c), f32.load(y, 4 * c))));
      f.return(total);
    },
    { result: "f32" },
  );
}

/** y += w · x for a row of f32. */
function writeAddRow(m: ModuleBuilder, width: number): FunctionHandle {
  return m.function(
    "add-row",
    [
      ["w", "f32"],
      ["x", "i32"],
      ["y", "i32"],
    ],
    (f, w, x, y) => {
      const by = f.local("v128", f32x4.splat(w));
      f.for(0, Math.floor(width / 4), 1, () => {
        f.store("v128", y, m.madd(by, v128.load(x), v128.load(y)));
        x.add(16);
        y.add(16);
      });
      for (let c = 0; c < width % 4; c++) {
        f.store("f32", y, f32.add(f32.load(y, 4 * c), f32.mul(w, f32.load(x, 4 * c))), 4 * c);
      }
    },
  );
}

/** φ(x) in exact order, √multiplicity included; writes up to three elements past the end. */
function writePhi(m: ModuleBuilder, degree: number): FunctionHandle {
  const runBytes = 4 * (degree + 1);
  return m.function(
    "phi",
    [
      ["x", "i32"],
      ["runs", "i32"],
      ["count", "i32"],
      ["root", "i32"],
      ["out", "i32"],
    ],
    (f, x, runs, count, root, out) => {
      const prefix = f.local("f32");
      const by = f.local("v128");
      const [length, last, at] = f.locals("i32", 3);
      // The table's offsets are of lines; here a dimension is one float.
      const element = (offset: Expr) => x.plus(i32.shrU(offset, Math.log2(LINE / 4)));
      f.for(0, count, 1, () => {
        prefix.set(1);
        for (let i = 0; i < degree - 1; i++) prefix.set(f32.mul(prefix, f32.load(element(i32.load(runs, 8 + 4 * i)))));
        by.set(f32x4.splat(prefix));
        length.set(i32.load(runs));
        last.set(element(i32.load(runs, 4)));
        at.set(0);
        f.doWhile(
          () => {
            const k = at.times(4);
            const value = f32x4.mul(f32x4.mul(by, v128.load(last.plus(k))), v128.load(root.plus(k)));
            f.store("v128", out.plus(k), value);
            at.add(4);
          },
          () => i32.lt(at, length),
        );
        out.add(length.times(4));
        root.add(length.times(4));
        runs.add(runBytes);
      });
    },
  );
}

/** y[width] += by · Σ_f phi[f] · s[f][width]. */
function writeReadState(m: ModuleBuilder, width: number): FunctionHandle {
  return m.function(
    "read-state",
    [
      ["phi", "i32"],
      ["s", "i32"],
      ["features", "i32"],
      ["by", "f32"],
      ["y", "i32"],
    ],
    (f, phi, s, features, by, y) => {
      const scale = f.local("v128", f32x4.splat(by));
      const [p, row] = f.locals("i32", 2);
      const w = f.local("v128");
      let column = 0;
      while (width - column >= 4) {
        const vectors = Math.min(8, Math.floor((width - column) / 4));
        const acc = f.locals("v128", vectors);
        for (const a of acc) a.set(f32x4.const(0));
        p.set(phi);
        row.set(s.plus(4 * column));
        f.for(0, features, 1, () => {
          w.set(v128.load32Splat(p));
          for (const [k, a] of acc.entries()) a.set(m.madd(w, v128.load(row, 16 * k), a));
          p.add(4);
          row.add(4 * width);
        });
        for (const [k, a] of acc.entries()) {
          const at = 4 * column + 16 * k;
          f.store("v128", y, m.madd(scale, a, v128.load(y, at)), at);
        }
        column += 4 * vectors;
      }
      for (; column < width; column++) {
        const total = f.local("f32", 0);
        p.set(phi);
        row.set(s.plus(4 * column));
        f.for(0, features, 1, () => {
          total.set(f32.add(total, f32.mul(f32.load(p), f32.load(row))));
          p.add(4);
          row.add(4 * width);
        });
        f.store("f32", y, f32.add(f32.load(y, 4 * column), f32.mul(by, total)), 4 * column);
      }
    },
  );
}

/** phi · z, in four partial sums. */
function writeDotZ(m: ModuleBuilder): FunctionHandle {
  return m.function(
    "dot-z",
    [
      ["phi", "i32"],
      ["z", "i32"],
      ["features", "i32"],
    ],
    (f, phi, z, features) => {
      const sum = f.local("v128", f32x4.const(0));
      const total = f.local("f32");
      f.for(0, i32.shrU(features, 2), 1, () => {
        sum.set(m.madd(v128.load(phi), v128.load(z), sum));
        phi.add(16);
        z.add(16);
      });
      total.set(sumLanes(sum));
      f.for(0, i32.and(features, 3), 1, () => {
        total.set(f32.add(total, f32.mul(f32.load(phi), f32.load(z))));
        phi.add(4);
        z.add(4);
      });
      f.return(total);
    },
    { result: "f32" },
  );
}

/** Normalises one row of y in place, given the sum of its weights. */
function writeNormalise(m: ModuleBuilder, width: number): FunctionHandle {
  return m.function(
    "normalise",
    [
      ["y", "i32"],
      ["sum", "f32"],
      ["how", "i32"],
    ],
    (f, y, sum, how) => {
      const [factor, mean, square, centred] = f.locals("f32", 4);
      factor.set(1);
      const at = (c: Local) => y.plus(c.times(4));
      f.if(i32.eq(how, NORMALIZE.sum), () => factor.set(select(f32.const(0), f32.div(1, sum), f32.eq(sum, 0))));
      f.if(i32.eq(how, NORMALIZE.layernorm), () => {
        f.for(0, width, 1, (c) => mean.set(f32.add(mean, f32.load(at(c)))));
        mean.set(f32.mul(mean, 1 / width));
        f.for(0, width, 1, (c) => {
          centred.set(f32.sub(f32.load(at(c)), mean));
          square.set(f32.add(square, f32.mul(centred, centred)));
          f.store("f32", at(c), centred);
        });
        factor.set(f32.div(1, f32.add(f32.sqrt(f32.mul(square, 1 / width)), LAYERNORM_EPSILON)));
      });
      f.for(0, width, 1, (c) => f.store("f32", at(c), f32.mul(factor, f32.load(at(c)))));
    },
  );
}

/** One batch element and key head: its new tokens join the tail, then each of its queries is answered. */
function writeStep(m: ModuleBuilder, { headDim, valueDim, degree }: StepPlan, dtype: DType): void {
  const bytes = DTYPE_BYTES[dtype];
  const dot = writeDot(m, headDim);
  const addRow = writeAddRow(m, valueDim);
  const phi = writePhi(m, degree);
  const readState = writeReadState(m, valueDim);
  const dotZ = writeDotZ(m);
  const normalise = writeNormalise(m, valueDim);
  const reciprocal = writeReciprocalPower(m);
  m.function(
    "step",
    KERNEL_PARAMS,
    (f, args, item, scratch) => {
      const a = ARGUMENTS.fieldsAt(args) as Args;
      const b = f.local("i32", i32.div(item, a.heads));
      const h = f.local("i32", i32.rem(item, a.heads));
      const at = (name: "row" | "y" | "phi" | "gates") => i32.add(scratch, a[name]);
      const slot = (t: Expr) => i32.add(i32.mul(i32.add(i32.mul(b, a.capacity), t), a.heads), h);
      const end = f.local("i32", i32.add(a.tail, a.tokens));
      const [from, head, largest] = f.locals("i32", 3);

      f.for(0, a.tokens, 1, (i) => {
        const to = f.local("i32", slot(i32.add(a.tail, i)));
        from.set(a.k.plus(i32.mul(b, a.kBatch)).plus(i32.mul(i, a.kTime)).plus(i32.mul(h, a.kHead)));
        copyRow(f, dtype, headDim, from, f.local("i32", a.tailK.plus(to.times(4 * headDim))));
        from.set(a.v.plus(i32.mul(b, a.vBatch)).plus(i32.mul(i, a.vTime)).plus(i32.mul(h, a.vHead)));
        copyRow(f, dtype, valueDim, from, f.local("i32", a.tailV.plus(to.times(4 * valueDim))));
        const gate = f.local("f32", 0);
        f.if(a.logG, () => {
          const row = i32.add(i32.mul(i32.add(i32.mul(b, a.tokens), i), a.heads), h);
          gate.set(f32.load(a.logG.plus(row.times(4))));
        });
        f.store("f32", a.tailG.plus(to.times(4)), gate);
      });
      f.for(0, end, 1, (t) => {
        const g = f64.fromF32(f32.load(a.tailG.plus(slot(t).times(4))));
        f.store("f64", at("gates").plus(t.times(8)), exp64(f, g));
      });

      const decay = f.local("f64");
      const [factor, score, weight, sum] = f.locals("f32", 4);
      const j = f.local("i32");
      f.for(0, a.tokens, 1, (i) => {
        f.for(0, a.group, 1, (k) => {
          head.set(i32.add(i32.mul(h, a.group), k));
          from.set(a.q.plus(i32.mul(b, a.qBatch)).plus(i32.mul(i, a.qTime)).plus(i32.mul(head, a.qHead)));
          copyRow(f, dtype, headDim, from, f.local("i32", at("row")));
          // Sums divide out the size of q and of scale: see power attention's forward.
          factor.set(a.scale);
          f.if(i32.eq(a.normalize, NORMALIZE.sum), () => {
            largest.set(0);
            f.for(0, headDim, 1, (c) => {
              const bits = f.local("i32", i32.and(i32.load(at("row").plus(c.times(4))), 0x7fffffff));
              f.if(i32.lt(bits, 0x7f800000), () => largest.set(i32.max(largest, bits)));
            });
            factor.set(select(f32.const(0), f.value(reciprocal, largest), f32.eq(a.scale, 0)));
          });
          f.for(0, headDim, 1, (c) => {
            const element = f.local("i32", at("row").plus(c.times(4)));
            f.store("f32", element, f32.mul(factor, f32.load(element)));
          });

          f.fill(at("y"), 0, 4 * valueDim);
          sum.set(0);
          decay.set(1);
          j.set(i32.add(a.tail, i));
          f.while(i32.ge(j, 0), () => {
            const row = f.local("i32", slot(j));
            score.set(f.value(dot, at("row"), a.tailK.plus(row.times(4 * headDim))));
            weight.set(f32.fromF64(decay));
            for (let n = 0; n < degree; n++) weight.set(f32.mul(weight, score));
            sum.set(f32.add(sum, weight));
            f.call(addRow, weight, a.tailV.plus(row.times(4 * valueDim)), at("y"));
            decay.set(f64.mul(decay, f64.load(at("gates").plus(j.times(8)))));
            j.set(j.minus(1));
          });
          f.if(a.s, () => {
            f.call(phi, at("row"), a.runs, a.runCount, a.root, at("phi"));
            const state = f.local("i32", i32.mul(item, a.features));
            weight.set(f32.fromF64(decay));
            const z = a.z.plus(state.times(4));
            sum.set(f32.add(sum, f32.mul(weight, f.value(dotZ, at("phi"), z, a.features))));
            f.call(readState, at("phi"), a.s.plus(state.times(4 * valueDim)), a.features, weight, at("y"));
          });
          f.call(normalise, at("y"), sum, a.normalize);
          const row = i32.add(i32.mul(i32.add(i32.mul(b, a.tokens), i), i32.mul(a.heads, a.group)), head);
          const to = f.local("i32", a.out.plus(row.times(valueDim * bytes)));
          f.for(0, valueDim, 1, (c) => store1(f, dtype, to.plus(c.times(bytes)), f32.load(at("y").plus(c.times(4)))));
        });
      });
    },
    { exported: true },
  );
}

export const stepWasm: StepForward = (plan, carry, { q, k, v, logG }) => {
  const device = wasmDevice(q);
  const { batch, heads, headDim, valueDim, degree, tokens } = plan;
  const key = `step d=${headDim} e=${valueDim} p=${degree} ${q.dtype}`;
  const module = device.module(key, (m) => writeStep(m, plan, q.dtype));
  const output = empty([batch, tokens, plan.queryHeads, valueDim], device, q.dtype);
  const table = plan.folded ? tablesOf(device, headDim, degree) : NO_TABLES;
  const bytes = DTYPE_BYTES[q.dtype];
  const row = 0;
  const y = row + roundUp(4 * headDim + 16, LINE);
  const phi = y + roundUp(4 * valueDim, LINE);
  const gates = phi + roundUp(4 * plan.expandedDim + 16, LINE);
  const values = {
    q: addressOf(q),
    k: addressOf(k),
    v: addressOf(v),
    logG: logG ? addressOf(logG) : 0,
    qBatch: q.strides[0] * bytes,
    qTime: q.strides[1] * bytes,
    qHead: q.strides[2] * bytes,
    kBatch: k.strides[0] * bytes,
    kTime: k.strides[1] * bytes,
    kHead: k.strides[2] * bytes,
    vBatch: v.strides[0] * bytes,
    vTime: v.strides[1] * bytes,
    vHead: v.strides[2] * bytes,
    heads,
    group: plan.queryHeads / heads,
    tokens,
    tail: plan.tail,
    capacity: plan.foldLength,
    tailK: addressOf(carry.k),
    tailV: addressOf(carry.v),
    tailG: addressOf(carry.logG),
    s: plan.folded ? addressOf(carry.s!) : 0,
    z: plan.folded ? addressOf(carry.z!) : 0,
    features: plan.expandedDim,
    runs: table.runs,
    runCount: table.runCount,
    root: table.root,
    normalize: NORMALIZE[plan.normalize],
    scale: plan.scale,
    out: addressOf(output),
    row,
    y,
    phi,
    gates,
  };
  device.run(module, "step", ARGUMENTS, values, batch * heads, gates + 8 * (plan.tail + tokens));
  return output;
};

/** The tail as one chunk of the forward kernel, without queries: the state is read at its start and written at its end. */
export const foldTailWasm: FoldTail = (plan, carry) => {
  const { tail, heads } = plan;
  const device = wasmDevice(carry.k);
  const [k, v] = [carry.k, carry.v].map((x) => x.slice(1, 0, tail));
  const logG = carry.logG.slice(1, 0, tail).contiguous();
  const state = { s: carry.s!, z: carry.z! };
  const sequence = { ...plan, queryHeads: heads, time: tail, chunkSize: tail, chunks: 1, scale: 1, gated: true };
  runForward(device, sequence, {
    k,
    v,
    logG,
    inside: false,
    reads: "carry",
    from: plan.folded ? state : undefined,
    writes: "carry",
    to: state,
    normalize: "none",
  });
  for (const view of [k, v, logG]) view.dispose();
};
