import type { DType } from "../../tensor/dtype.js";
import { load1, load4, store1, store4 } from "./convert.js";
import {
  type Expr,
  type FunctionHandle,
  f32,
  f32x4,
  i32,
  i32x4,
  type Local,
  type ModuleBuilder,
  shuffle32,
  v128,
} from "./emitter.js";
import { GROUP, LINE, PANEL } from "./tiles.js";

/** Rows are staged as float32 [16][padded width], zeros in the padding, before they are laid out for the tiles. */
export function writeLoadRows(
  m: ModuleBuilder,
  dtype: DType,
  width: number,
  padded: number,
  name: string,
): FunctionHandle {
  const row = 4 * padded;
  const bytes = dtype === "f32" ? 4 : 2;
  return m.function(
    name,
    [
      ["source", "i32"],
      ["stride", "i32"],
      ["rows", "i32"],
      ["out", "i32"],
    ],
    (f, source, stride, rows, out) => {
      f.if(i32.lt(rows, GROUP), () => f.fill(out, 0, GROUP * row));
      f.for(0, rows, 1, () => {
        const whole = Math.floor(width / 4);
        const unrolled = whole <= 4 ? whole : 0;
        for (let c = 0; c < unrolled; c++) f.store("v128", out, load4(f, dtype, source, 4 * c * bytes), 16 * c);
        if (!unrolled && whole > 0) {
          f.for(0, whole, 1, (c) => {
            f.store("v128", out.plus(c.times(16)), load4(f, dtype, source.plus(c.times(4 * bytes))));
          });
        }
        for (let c = 4 * whole; c < width; c++) f.store("f32", out, load1(f, dtype, source, c * bytes), 4 * c);
        for (let c = width; c < padded; c++) f.store("f32", out, 0, 4 * c);
        source.add(stride);
        out.add(row);
      });
    },
  );
}

/** Writes `rows` staged rows out in the tensor's dtype. */
export function writeStoreRows(
  m: ModuleBuilder,
  dtype: DType,
  width: number,
  padded: number,
  name: string,
): FunctionHandle {
  const bytes = dtype === "f32" ? 4 : 2;
  return m.function(
    name,
    [
      ["rows", "i32"],
      ["count", "i32"],
      ["target", "i32"],
      ["stride", "i32"],
    ],
    (f, rows, count, target, stride) => {
      f.for(0, count, 1, () => {
        const whole = Math.floor(width / 4);
        f.for(0, whole, 1, (c) => {
          store4(f, dtype, target.plus(c.times(4 * bytes)), v128.load(rows.plus(c.times(16))));
        });
        for (let c = 4 * whole; c < width; c++) store1(f, dtype, target, f32.load(rows, 4 * c), c * bytes);
        target.add(stride);
        rows.add(4 * padded);
      });
    },
  );
}

/** The columns of four vectors, by way of four more locals. */
function transpose4x4(rows: readonly Local[], half: readonly Local[]): Expr[] {
  for (const [k, lanes] of (
    [
      [0, 4, 1, 5],
      [2, 6, 3, 7],
    ] as const
  ).entries()) {
    half[2 * k].set(shuffle32(rows[0], rows[1], lanes));
    half[2 * k + 1].set(shuffle32(rows[2], rows[3], lanes));
  }
  return [half.slice(0, 2), half.slice(2)].flatMap(([a, b]) => [
    shuffle32(a, b, [0, 1, 4, 5]),
    shuffle32(a, b, [2, 3, 6, 7]),
  ]);
}

/** Staged rows [16][padded] → transposed group [padded][16]. */
export function writeTranspose(m: ModuleBuilder, padded: number, name: string): FunctionHandle {
  const row = 4 * padded;
  return m.function(
    name,
    [
      ["rows", "i32"],
      ["out", "i32"],
    ],
    (f, rows, out) => {
      const r = f.locals("v128", 4);
      const t = f.locals("v128", 4);
      f.for(0, padded / 4, 1, () => {
        for (let quad = 0; quad < GROUP / 4; quad++) {
          for (let k = 0; k < 4; k++) r[k].set(v128.load(rows, (4 * quad + k) * row));
          for (const [k, line] of transpose4x4(r, t).entries()) f.store("v128", out, line, k * LINE + 16 * quad);
        }
        rows.add(16);
        out.add(4 * LINE);
      });
    },
  );
}

/** Transposed group [padded][16] → staged rows [16][padded]. */
export function writeUntranspose(m: ModuleBuilder, padded: number, name: string): FunctionHandle {
  const row = 4 * padded;
  return m.function(
    name,
    [
      ["lines", "i32"],
      ["out", "i32"],
    ],
    (f, lines, out) => {
      const r = f.locals("v128", 4);
      const t = f.locals("v128", 4);
      f.for(0, padded / 4, 1, () => {
        for (let quad = 0; quad < GROUP / 4; quad++) {
          for (let k = 0; k < 4; k++) r[k].set(v128.load(lines, k * LINE + 16 * quad));
          for (const [k, line] of transpose4x4(r, t).entries()) f.store("v128", out, line, (4 * quad + k) * row);
        }
        lines.add(4 * LINE);
        out.add(16);
      });
    },
  );
}

/** Staged rows [16][padded] → the same 16 rows of panels [padded / 8][·][8]; `out` is the first panel's row. */
export function writePanels(m: ModuleBuilder, padded: number, name: string): FunctionHandle {
  return m.function(
    name,
    [
      ["rows", "i32"],
      ["out", "i32"],
      ["panelStride", "i32"],
    ],
    (f, rows, out, panelStride) => {
      f.for(0, padded / PANEL, 1, () => {
        for (let r = 0; r < GROUP; r++) {
          f.store("v128", out, v128.load(rows, 4 * r * padded), 4 * PANEL * r);
          f.store("v128", out, v128.load(rows, 4 * r * padded + 16), 4 * PANEL * r + 16);
        }
        rows.add(4 * PANEL);
        out.add(panelStride);
      });
    },
  );
}

/** Multiplies each of 16 staged rows by its own factor: rows[r][·] *= factors[r]. */
export function writeScaleRows(m: ModuleBuilder, padded: number, name: string): FunctionHandle {
  return m.function(
    name,
    [
      ["rows", "i32"],
      ["factors", "i32"],
    ],
    (f, rows, factors) => {
      const s = f.local("v128");
      f.for(0, GROUP, 1, () => {
        s.set(v128.load32Splat(factors));
        f.for(0, padded / 4, 1, () => {
          f.store("v128", rows, f32x4.mul(s, v128.load(rows)));
          rows.add(16);
        });
        factors.add(4);
      });
    },
  );
}

/** |x| where it is finite, else 0: a future NaN or infinity must not change how the past is scaled. */
function finiteMagnitude(x: ReturnType<typeof f32x4.abs>) {
  const bits = v128.and(x, i32x4.const(0x7fffffff));
  return v128.and(bits, i32x4.gt(i32x4.const(0x7f800000), bits));
}

/**
 * The power of two that brings a magnitude near 1, from the magnitude's bits: 2^−⌊log₂ x⌋, kept a normal number;
 * 1 for zero.
 */
export function writeReciprocalPower(m: ModuleBuilder): FunctionHandle {
  return m.function(
    "reciprocal-power",
    [["bits", "i32"]],
    (f, bits) => {
      const exponent = f.local("i32", i32.shrU(bits, 23));
      f.if(i32.eqz(bits), () => exponent.set(127));
      const wanted = f.local("i32", i32.sub(254, exponent));
      f.return(f32.fromBits(i32.shl(i32.max(1, wanted), 23)));
    },
    { result: "f32" },
  );
}

/** The largest finite magnitude in 16 staged rows, as bits, combined with `before`. */
export function writeLargest(m: ModuleBuilder, padded: number, name: string): FunctionHandle {
  return m.function(
    name,
    [
      ["rows", "i32"],
      ["before", "i32"],
    ],
    (f, rows, before) => {
      const best = f.local("v128", i32x4.splat(before));
      f.for(0, (GROUP * padded) / 4, 1, () => {
        best.set(i32x4.max(best, finiteMagnitude(v128.load(rows))));
        rows.add(16);
      });
      f.return(
        i32.max(
          f.local("i32", i32.max(f.local("i32", i32x4.extract(best, 0)), f.local("i32", i32x4.extract(best, 1)))),
          f.local("i32", i32.max(f.local("i32", i32x4.extract(best, 2)), f.local("i32", i32x4.extract(best, 3)))),
        ),
      );
    },
    { result: "i32" },
  );
}

/** factors[16] = the reciprocal power of two of each staged row's largest finite element, times `by`. */
export function writeRowFactors(
  m: ModuleBuilder,
  padded: number,
  reciprocalPower: FunctionHandle,
  name: string,
): FunctionHandle {
  return m.function(
    name,
    [
      ["rows", "i32"],
      ["factors", "i32"],
      ["by", "f32"],
    ],
    (f, rows, factors, by) => {
      const best = f.local("v128");
      const bits = f.local("i32");
      f.for(0, GROUP, 1, () => {
        best.set(f32x4.const(0));
        f.for(0, padded / 4, 1, () => {
          best.set(i32x4.max(best, finiteMagnitude(v128.load(rows))));
          rows.add(16);
        });
        bits.set(i32x4.extract(best, 0));
        for (let k = 1; k < 4; k++) bits.set(i32.max(bits, f.local("i32", i32x4.extract(best, k))));
        f.store("f32", factors, f32.mul(by, f.value(reciprocalPower, bits)));
        factors.add(4);
      });
    },
  );
}

/** out[16] += by · Σ_n x[n][16] · y[n][16]: for each token of two transposed groups, their dot product. */
export function writeDotLines(m: ModuleBuilder): FunctionHandle {
  return m.function(
    "dot-lines",
    [
      ["x", "i32"],
      ["y", "i32"],
      ["n", "i32"],
      ["out", "i32"],
      ["by", "f32"],
    ],
    (f, x, y, n, out, by) => {
      const acc = f.locals("v128", 4);
      const s = f.local("v128", f32x4.splat(by));
      for (const v of acc) v.set(f32x4.const(0));
      f.for(0, n, 1, () => {
        for (let k = 0; k < 4; k++) acc[k].set(m.madd(v128.load(x, 16 * k), v128.load(y, 16 * k), acc[k]));
        x.add(LINE);
        y.add(LINE);
      });
      for (let k = 0; k < 4; k++) f.store("v128", out, f32x4.add(v128.load(out, 16 * k), f32x4.mul(s, acc[k])), 16 * k);
    },
  );
}
