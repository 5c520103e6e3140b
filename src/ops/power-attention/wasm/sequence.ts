import { type Expr, type FunctionBuilder, f32, f32x4, i32, type Local, select } from "../../../devices/wasm/emitter.js";
import type { Layout } from "../../../devices/wasm/layout.js";
import { GROUP, LINE, PANEL, roundUp } from "../../../devices/wasm/tiles.js";
import { SUB_BLOCK } from "./expand.js";
import { type Parts, TOKEN_BLOCK } from "./parts.js";

/** Inputs and sizes that the forward and the backward kernel share. Strides and offsets are in bytes. */
export const SEQUENCE_FIELDS = {
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
  time: "i32",
  heads: "i32",
  /** Query heads of one key head. */
  group: "i32",
  chunk: "i32",
  chunks: "i32",
  /** D, and the tables of run words, run starts, multiplicities and their roots. */
  features: "i32",
  runs: "i32",
  starts: "i32",
  multiplicity: "i32",
  root: "i32",
  /** Weights inside chunks are computed. */
  inside: "i32",
  /** Divide each query by the power of two near its largest element, and leave scale out: sums divide both out. */
  queryUnits: "i32",
  /** Divide keys by the power of two near the largest element of all; finished states are put back into true units. */
  keyUnits: "i32",
  normalize: "i32",
  /** The output before it was rounded to a half format, f32; 0 where there is no such copy. */
  exact: "i32",
  scale: "f32",
} as const;

export const NORMALIZE = { sum: 0, layernorm: 1, none: 2 } as const;

/** Buffers of one chunk in a thread's working memory that both kernels use, as offsets. */
export interface ChunkBuffers {
  rows: number;
  factors: number;
  ones: number;
  g: number;
  fromStart: number;
  toEnd: number;
  inGroup: number;
  toGroupEnd: number;
  groupGates: number;
  running: number;
  decay: number;
  diagonal: number;
  mask: number;
  kT: number;
  vPanels: number;
  qT: number;
  lines: number;
  panels: number;
  zBlock: number;
  s: number;
  z: number;
}

export interface ChunkSizes {
  /** Groups of 16 tokens in the longest chunk. */
  groups: number;
  /** Query heads of one key head. */
  group: number;
  features: number;
}

export function chunkBuffers(parts: Parts["dim"], sizes: ChunkSizes, layout: Layout): ChunkBuffers {
  const { d, e, block } = parts;
  const tokens = sizes.groups * GROUP;
  const features = roundUp(sizes.features, SUB_BLOCK);
  return {
    rows: layout.take(GROUP * 4 * Math.max(d, e)),
    factors: layout.take(LINE),
    ones: layout.take(LINE),
    g: layout.take(8 * tokens),
    fromStart: layout.take(4 * tokens),
    toEnd: layout.take(4 * tokens),
    inGroup: layout.take(4 * tokens),
    toGroupEnd: layout.take(8 * tokens),
    groupGates: layout.take(8 * sizes.groups),
    running: layout.take(8 * tokens),
    decay: layout.take(4 * tokens),
    diagonal: layout.take(GROUP * LINE),
    mask: layout.take(GROUP * LINE),
    kT: layout.take(sizes.groups * d * LINE),
    vPanels: layout.take(tokens * 4 * e),
    qT: layout.take(sizes.group * sizes.groups * d * LINE),
    lines: layout.take(Math.max(SUB_BLOCK * 4 * TOKEN_BLOCK, block * LINE)),
    panels: layout.take(block * 4 * e),
    zBlock: layout.take(4 * block),
    s: layout.take(sizes.features === 0 ? 0 : features * 4 * e),
    z: layout.take(features * 16),
  };
}

/** What a kernel's body works with inside the loop over chunks. */
export interface ChunkContext {
  f: FunctionBuilder;
  a: { [K in keyof typeof SEQUENCE_FIELDS]: Expr };
  /** Address of a buffer. */
  at: (name: keyof ChunkBuffers) => Expr;
  b: Local;
  h: Local;
  /** First token of the chunk, tokens in it, groups of 16. */
  t0: Local;
  n: Local;
  groups: Local;
  /** Multiplies keys; 1 unless `keyUnits`. */
  keyFactor: Local;
}

const tokens = (n: Expr, from: Expr) => i32.min(GROUP, i32.sub(n, from.times(GROUP)));

/** Walks the chunk's groups of k: staged, scaled, transposed to kT; `then` sees each group's staged rows. */
export function packKeys(parts: Parts, c: ChunkContext, then: (group: Local, rows: Expr) => void = () => {}): void {
  const { f, a, at } = c;
  const { dim } = parts;
  const source = f.local(
    "i32",
    a.k.plus(i32.mul(c.b, a.kBatch)).plus(i32.mul(c.t0, a.kTime)).plus(i32.mul(c.h, a.kHead)),
  );
  f.for(0, c.groups, 1, (g) => {
    f.call(parts.loadRows(dim.headDim, dim.d), source, a.kTime, f.local("i32", tokens(c.n, g)), at("rows"));
    f.if(a.keyUnits, () => {
      const s = f.local("v128", f32x4.splat(c.keyFactor));
      for (let k = 0; k < 4; k++) f.store("v128", at("factors"), s, 16 * k);
      f.call(parts.scaleRows(dim.d), at("rows"), at("factors"));
    });
    f.call(parts.transpose(dim.d), at("rows"), at("kT").plus(g.times(dim.d * LINE)));
    then(g, at("rows"));
    source.add(a.kTime.times(GROUP));
  });
}

/** Walks the chunk's groups of v to panels of `groups` · 16 rows. */
export function packValues(parts: Parts, c: ChunkContext, then: (group: Local, rows: Expr) => void = () => {}): void {
  const { f, a, at } = c;
  const { dim } = parts;
  const source = f.local(
    "i32",
    a.v.plus(i32.mul(c.b, a.vBatch)).plus(i32.mul(c.t0, a.vTime)).plus(i32.mul(c.h, a.vHead)),
  );
  f.for(0, c.groups, 1, (g) => {
    f.call(parts.loadRows(dim.valueDim, dim.e), source, a.vTime, f.local("i32", tokens(c.n, g)), at("rows"));
    f.call(parts.panels(dim.e), at("rows"), at("vPanels").plus(g.times(GROUP * 4 * PANEL)), panelStride(c));
    then(g, at("rows"));
    source.add(a.vTime.times(GROUP));
  });
}

/** Bytes from one panel of the chunk's values to the next. */
export function panelStride(c: { groups: Expr }): Expr {
  return c.groups.times(GROUP * 4 * PANEL);
}

/**
 * Walks all groups of the chunk's query heads (heads outermost): staged, brought near 1 by a power of two a row where
 * `queryUnits` (sum-normalised outputs don't depend on a row's size), else times scale, and transposed to qT.
 */
export function packQueries(parts: Parts, c: ChunkContext, then: (index: Local, rows: Expr) => void = () => {}): void {
  const { f, a, at } = c;
  const { dim } = parts;
  const index = f.local("i32", 0);
  const source = f.local("i32");
  f.for(0, a.group, 1, (m) => {
    const head = f.local("i32", i32.add(i32.mul(c.h, a.group), m));
    source.set(a.q.plus(i32.mul(c.b, a.qBatch)).plus(i32.mul(c.t0, a.qTime)).plus(i32.mul(head, a.qHead)));
    f.for(0, c.groups, 1, (g) => {
      f.call(parts.loadRows(dim.headDim, dim.d), source, a.qTime, f.local("i32", tokens(c.n, g)), at("rows"));
      f.if(
        a.queryUnits,
        () => f.call(parts.rowFactors(dim.d), at("rows"), at("factors"), f.local("f32", unitScale(a.scale))),
        () => {
          const s = f.local("v128", f32x4.splat(a.scale));
          for (let k = 0; k < 4; k++) f.store("v128", at("factors"), s, 16 * k);
        },
      );
      f.call(parts.scaleRows(dim.d), at("rows"), at("factors"));
      f.call(parts.transpose(dim.d), at("rows"), at("qT").plus(index.times(dim.d * LINE)));
      then(index, at("rows"));
      source.add(a.qTime.times(GROUP));
      index.add(1);
    });
  });
}

/** 0 where the scale is 0, else 1: the size of the scale divides out. */
function unitScale(scale: Expr): Expr {
  return select(f32.const(0), f32.const(1), f32.eq(scale, 0));
}

/** The power of two that brings the head's keys near 1, from all of its tokens. */
export function keyFactor(parts: Parts, c: Omit<ChunkContext, "t0" | "n" | "groups" | "keyFactor">, out: Local): void {
  const { f, a, at } = c;
  const { dim } = parts;
  out.set(1);
  f.if(a.keyUnits, () => {
    const bits = f.local("i32", 0);
    const source = f.local("i32", a.k.plus(i32.mul(c.b, a.kBatch)).plus(i32.mul(c.h, a.kHead)));
    f.for(0, a.time, GROUP, (t) => {
      const rows = f.local("i32", i32.min(GROUP, i32.sub(a.time, t)));
      f.call(parts.loadRows(dim.headDim, dim.d), source, a.kTime, rows, at("rows"));
      bits.set(f.value(parts.largest(dim.d), at("rows"), bits));
      source.add(a.kTime.times(GROUP));
    });
    out.set(f.value(parts.reciprocalPower(), bits));
  });
}

/** The chunk's decays, into the context's buffers; returns the local that holds their product. */
export function chunkGates(parts: Parts, c: ChunkContext, product: Local): void {
  const { f, a, at } = c;
  const logG = f.local("i32", 0);
  const step = f.local("i32", a.heads.times(4));
  f.if(a.logG, () => {
    const row = i32.add(i32.mul(c.b, a.time), c.t0);
    logG.set(a.logG.plus(i32.add(i32.mul(row, a.heads), c.h).times(4)));
  });
  product.set(
    f32.fromF64(
      f.value(
        parts.gates(),
        logG,
        step,
        c.n,
        at("g"),
        at("fromStart"),
        at("toEnd"),
        at("inGroup"),
        at("toGroupEnd"),
        at("groupGates"),
      ),
    ),
  );
}

/** Ones, for what wants a line of weights and has none. */
export function fillOnes(c: Pick<ChunkContext, "f" | "at">): void {
  for (let k = 0; k < 4; k++) c.f.store("v128", c.at("ones"), f32x4.const(1), 16 * k);
}
