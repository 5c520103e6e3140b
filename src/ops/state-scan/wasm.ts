import { addressOf, type WasmDevice, wasmDevice } from "../../devices/wasm/device.js";
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
  v128,
} from "../../devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../../devices/wasm/kernel.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { exp64 } from "../power-attention/wasm/gates.js";
import type { ScanPlan, StateScanBackward, StateScanForward } from "./contract.js";

/** Elements of a state that one item carries over all chunks: long enough to stream, and to stay in the second cache. */
const SLICE = 32768;
/** Vectors of products that are added up in f32; sums of such runs are added up in f64. */
const RUN = 256;

/** Blocks of `block` numbers, one for each batch element, chunk and head: s or z, whose recurrence is the same. */
const SCAN = new Arguments({
  heads: "i32",
  chunks: "i32",
  block: "i32",
  slices: "i32",
  /** [B · H, N] f64, or 0: no decay. */
  gates: "i32",
  /** [B, N, H, block]: states and entering; backward, the gradients of entering (0: none) and of states. */
  from: "i32",
  to: "i32",
  /** [B, H, block]: the state that is carried in (0: none) and out (0: not wanted); or its gradients. */
  start: "i32",
  end: "i32",
  /** Backward, where gated: the forward's entering [B, N, H, block], and [B · H, N, allSlices] f64 sums. */
  entering: "i32",
  sums: "i32",
  allSlices: "i32",
  firstSlice: "i32",
});

const GATES = new Arguments({
  time: "i32",
  heads: "i32",
  chunk: "i32",
  chunks: "i32",
  logG: "i32",
  gates: "i32",
  sums: "i32",
  allSlices: "i32",
  dLogG: "i32",
});

/** next[n] = gate · carried[n] + added[n]. */
function writeStep(m: ModuleBuilder): FunctionHandle {
  return m.function(
    "step",
    [
      ["n", "i32"],
      ["gate", "f32"],
      ["carried", "i32"],
      ["added", "i32"],
      ["next", "i32"],
    ],
    (f, n, gate, carried, added, next) => {
      const g = f.local("v128", f32x4.splat(gate));
      const wide = f.local("i32", i32.shrU(n, 2));
      f.while(wide, () => {
        f.store("v128", next, m.madd(g, v128.load(carried), v128.load(added)));
        for (const pointer of [carried, added, next]) pointer.add(16);
        wide.set(wide.minus(1));
      });
      n.set(i32.and(n, 3));
      f.while(n, () => {
        f.store("f32", next, f32.add(f32.mul(gate, f32.load(carried)), f32.load(added)));
        for (const pointer of [carried, added, next]) pointer.add(4);
        n.set(n.minus(1));
      });
    },
  );
}

/** Σ x[n] · y[n]. */
function writeDot(m: ModuleBuilder): FunctionHandle {
  return m.function(
    "dot",
    [
      ["n", "i32"],
      ["x", "i32"],
      ["y", "i32"],
    ],
    (f, n, x, y) => {
      const sums = f.locals("v128", 4);
      const total = f.local("f64");
      const wide = f.local("i32", i32.shrU(n, 4));
      const run = f.local("i32");
      f.while(wide, () => {
        run.set(i32.min(wide, RUN / 4));
        wide.set(i32.sub(wide, run));
        for (const sum of sums) sum.set(f32x4.const(0));
        f.doWhile(() => {
          for (const [k, sum] of sums.entries()) sum.set(m.madd(v128.load(x, 16 * k), v128.load(y, 16 * k), sum));
          for (const pointer of [x, y]) pointer.add(64);
          run.set(run.minus(1));
        }, run);
        for (const sum of sums) {
          for (const lane of [0, 1, 2, 3]) total.set(f64.add(total, f64.fromF32(f32x4.extract(sum, lane))));
        }
      });
      n.set(i32.and(n, 15));
      f.while(n, () => {
        total.set(f64.add(total, f64.fromF32(f32.mul(f32.load(x), f32.load(y)))));
        for (const pointer of [x, y]) pointer.add(4);
        n.set(n.minus(1));
      });
      f.return(total);
    },
    { result: "f64" },
  );
}

/**
 * The recurrence over the chunks of one head, for one slice of its state. Forward: to[0] = start, to[c + 1] =
 * gate[c] · to[c] + from[c], the last one being `end`. Backward the same from the last chunk on: to[N − 1] = start,
 * to[c − 1] = gate[c] · to[c] + from[c]; and where gated, sums = to[c] · entering[c], the gradient of the gate.
 */
function writeScan(m: ModuleBuilder, backward: boolean, step: FunctionHandle, dot: FunctionHandle): FunctionHandle {
  return m.function(
    backward ? "backward" : "forward",
    KERNEL_PARAMS,
    (f, args, item, scratch) => {
      const a = SCAN.fieldsAt(args);
      // In place of gradients that did not arrive, and of those that nobody wants.
      const [zeros, unwanted] = [scratch, scratch.plus(4 * SLICE)];
      const sequence = f.local("i32", i32.div(item, a.slices));
      const slice = f.local("i32", i32.rem(item, a.slices));
      const b = f.local("i32", i32.div(sequence, a.heads));
      const h = f.local("i32", i32.rem(sequence, a.heads));
      const n = f.local("i32", i32.min(SLICE, i32.sub(a.block, slice.times(SLICE))));
      const [carried, next, added, c] = f.locals("i32", 4);
      const gate = f.local("f32");
      const within = slice.times(4 * SLICE);
      const ofChunk = (base: Expr, chunk: Expr) =>
        base
          .plus(i32.mul(i32.add(i32.mul(i32.add(i32.mul(b, a.chunks), chunk), a.heads), h), a.block.times(4)))
          .plus(within);
      const ofSequence = (base: Expr) => base.plus(i32.mul(sequence, a.block.times(4))).plus(within);
      const first = backward ? a.chunks.minus(1) : i32.const(0);
      const toEnd = () => {
        next.set(unwanted);
        f.if(a.end, () => next.set(ofSequence(a.end)));
      };

      f.if(i32.eqz(a.from), () => f.fill(zeros, 0, n.times(4)));
      f.if(a.chunks, () => next.set(ofChunk(a.to, first)), toEnd);
      f.if(
        a.start,
        () => f.copy(next, ofSequence(a.start), n.times(4)),
        () => f.fill(next, 0, n.times(4)),
      );
      f.for(0, a.chunks, 1, (done) => {
        c.set(backward ? i32.sub(a.chunks.minus(1), done) : done);
        carried.set(next);
        f.if(i32.eq(done, a.chunks.minus(1)), toEnd, () => next.set(ofChunk(a.to, backward ? c.minus(1) : c.plus(1))));
        added.set(zeros);
        f.if(a.from, () => added.set(ofChunk(a.from, c)));
        gate.set(1);
        const row = f.local("i32", i32.add(i32.mul(sequence, a.chunks), c));
        f.if(a.gates, () => gate.set(f32.fromF64(f64.load(a.gates.plus(row.times(8))))));
        if (backward) {
          f.if(a.gates, () => {
            const at = i32.add(i32.mul(row, a.allSlices), i32.add(a.firstSlice, slice)).times(8);
            f.store("f64", a.sums.plus(at), f.value(dot, n, carried, ofChunk(a.entering, c)));
          });
        }
        f.call(step, n, gate, carried, added, next);
      });
    },
    { exported: true },
  );
}

/** Walks the tokens of chunk `item` (of b · H · N + h · N + c); `body` gets each one's place in [B, T, H]. */
function eachToken(
  f: FunctionBuilder,
  a: { [K in "time" | "heads" | "chunk" | "chunks"]: Expr },
  item: Local,
  body: (row: Local) => void,
): void {
  const sequence = f.local("i32", i32.div(item, a.chunks));
  const t0 = f.local("i32", i32.mul(i32.rem(item, a.chunks), a.chunk));
  const b = f.local("i32", i32.div(sequence, a.heads));
  const row = f.local("i32", i32.mul(i32.add(i32.mul(b, a.time), t0), a.heads));
  row.add(i32.rem(sequence, a.heads));
  f.for(0, i32.min(a.chunk, i32.sub(a.time, t0)), 1, () => {
    body(row);
    row.add(a.heads);
  });
}

/** gates[item] = e^G_end of a chunk: a product of gates in float64, so that logG = −∞ makes 0 and no NaN. */
function writeChunkGates(m: ModuleBuilder): FunctionHandle {
  return m.function(
    "chunk-gates",
    KERNEL_PARAMS,
    (f, args, item) => {
      const a = GATES.fieldsAt(args);
      const product = f.local("f64", 1);
      eachToken(f, a, item, (row) => {
        product.set(f64.mul(product, exp64(f, f64.fromF32(f32.load(a.logG.plus(row.times(4)))))));
      });
      f.store("f64", a.gates.plus(item.times(8)), product);
    },
    { exported: true },
  );
}

/** dLogG of all tokens of a chunk: its gate times the gate's gradient. */
function writeGateGradient(m: ModuleBuilder): FunctionHandle {
  return m.function(
    "gate-gradient",
    KERNEL_PARAMS,
    (f, args, item) => {
      const a = GATES.fieldsAt(args);
      const total = f.local("f64");
      f.for(0, a.allSlices, 1, (k) => {
        total.set(f64.add(total, f64.load(a.sums.plus(i32.add(i32.mul(item, a.allSlices), k).times(8)))));
      });
      total.set(f64.mul(total, f64.load(a.gates.plus(item.times(8)))));
      eachToken(f, a, item, (row) => f.store("f32", a.dLogG.plus(row.times(4)), f32.fromF64(total)));
    },
    { exported: true },
  );
}

function moduleOf(device: WasmDevice) {
  return device.module("state-scan", (m) => {
    const step = writeStep(m);
    const dot = writeDot(m);
    writeScan(m, false, step, dot);
    writeScan(m, true, step, dot);
    writeChunkGates(m);
    writeGateGradient(m);
  });
}

const address = (tensor: Tensor | undefined) => (tensor ? addressOf(tensor) : 0);

/** Runs `body` with the address of every chunk's decay, [B · H, N] in float64, or 0 where there is none. */
function withGates<R>(device: WasmDevice, plan: ScanPlan, logG: Tensor | undefined, body: (gates: number) => R): R {
  const { batch, time, heads, chunkSize: chunk, chunks } = plan;
  if (!logG || chunks === 0) return body(0);
  const gates = device.reserve(8 * batch * heads * chunks, "the chunks' gates");
  try {
    const values = { time, heads, chunk, chunks, logG: address(logG), gates, sums: 0, allSlices: 0, dLogG: 0 };
    device.run(moduleOf(device), "chunk-gates", GATES, values, batch * heads * chunks);
    return body(gates);
  } finally {
    device.release(gates);
  }
}

/** The two blocks of numbers that a state is made of: their lengths, and how many slices each is cut into. */
function partsOf(plan: ScanPlan) {
  const block = { s: plan.expandedDim * plan.valueDim, z: plan.expandedDim };
  return { block, slices: { s: Math.ceil(block.s / SLICE), z: Math.ceil(block.z / SLICE) } };
}

export const stateScanWasm: StateScanForward = (plan, { states, logG, initialState }) => {
  const device = wasmDevice(states.s);
  const { batch, heads, chunks, expandedDim, valueDim } = plan;
  const { block, slices } = partsOf(plan);
  const entering = { s: empty(states.s.shape, device, "f32"), z: empty(states.z.shape, device, "f32") };
  const finalState = {
    s: empty([batch, heads, expandedDim, valueDim], device, "f32"),
    z: empty([batch, heads, expandedDim], device, "f32"),
  };
  withGates(device, plan, logG, (gates) => {
    for (const part of ["s", "z"] as const) {
      const values = {
        heads,
        chunks,
        block: block[part],
        slices: slices[part],
        gates,
        from: address(states[part]),
        to: address(entering[part]),
        start: address(initialState?.[part]),
        end: address(finalState[part]),
        entering: 0,
        sums: 0,
        allSlices: 0,
        firstSlice: 0,
      };
      device.run(moduleOf(device), "forward", SCAN, values, batch * heads * slices[part], 8 * SLICE);
    }
  });
  return { entering, finalState };
};

export const stateScanWasmBackward: StateScanBackward = (plan, { logG, entering }, upstream) => {
  const device = wasmDevice(entering.s);
  const { batch, time, heads, chunkSize: chunk, chunks, expandedDim, valueDim } = plan;
  const { block, slices } = partsOf(plan);
  const allSlices = slices.s + slices.z;
  const states = { s: empty(entering.s.shape, device, "f32"), z: empty(entering.z.shape, device, "f32") };
  const initialState = plan.hasInitialState
    ? {
        s: empty([batch, heads, expandedDim, valueDim], device, "f32"),
        z: empty([batch, heads, expandedDim], device, "f32"),
      }
    : undefined;
  const dLogG = logG && empty(logG.shape, device, "f32");
  withGates(device, plan, logG, (gates) => {
    const sums = gates ? device.reserve(8 * batch * heads * chunks * allSlices, "the gradient of the gates") : 0;
    for (const part of ["s", "z"] as const) {
      const values = {
        heads,
        chunks,
        block: block[part],
        slices: slices[part],
        gates,
        from: address(upstream.entering[part]),
        to: address(states[part]),
        start: address(upstream.finalState[part]),
        end: address(initialState?.[part]),
        entering: address(entering[part]),
        sums,
        allSlices,
        firstSlice: part === "s" ? 0 : slices.s,
      };
      device.run(moduleOf(device), "backward", SCAN, values, batch * heads * slices[part], 8 * SLICE);
    }
    if (!gates) return;
    const values = { time, heads, chunk, chunks, logG: address(logG), gates, sums, allSlices, dLogG: address(dLogG) };
    device.run(moduleOf(device), "gate-gradient", GATES, values, batch * heads * chunks);
    device.release(sums);
  });
  return { states, logG: dLogG, initialState };
};
