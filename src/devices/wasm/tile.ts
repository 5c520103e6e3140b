import { type Expr, type FunctionBuilder, i32, type Local, v128 } from "./emitter.js";

/**
 * Steps between two tests of the tile's loop. A step is 16 multiplications and additions and 6 loads; each test of a loop
 * costs about as much as four of them (the engine checks the stack there).
 */
const UNROLL = 16;

/**
 * The register tile of all products: acc[4][8] += Σ_n a[n][4] ⊗ b[n][8], acc as eight vectors, two a row. `a` is read by
 * broadcast at four constant offsets, and both pointers advance by constant steps; they and `n` are consumed. Write it
 * into a function of its own with little else: the engine optimises functions one by one, between calls, and the tile
 * wants all registers.
 */
export function multiply4x8(
  f: FunctionBuilder,
  acc: Local[],
  a: Local,
  aOffsets: readonly number[],
  aStep: number,
  b: Local,
  bStep: number,
  n: Local,
): void {
  const m = f.module;
  const b0 = f.local("v128");
  const b1 = f.local("v128");
  const x = f.local("v128");
  const step = (from: Expr, bOffset: number) => {
    b0.set(v128.load(b, bOffset));
    b1.set(v128.load(b, bOffset + 16));
    for (let r = 0; r < 4; r++) {
      x.set(v128.load32Splat(from, aOffsets[r]));
      acc[2 * r].set(m.madd(x, b0, acc[2 * r]));
      acc[2 * r + 1].set(m.madd(x, b1, acc[2 * r + 1]));
    }
  };
  const from = f.local("i32");
  f.while(i32.ge(n, UNROLL), () => {
    step(a, 0);
    for (let u = 1; u < UNROLL; u++) {
      // A branch that is always taken: without it the engine moves all loads to the front and spills.
      f.if(n, () => {
        from.set(a.plus(u * aStep));
        step(from, u * bStep);
      });
    }
    a.add(UNROLL * aStep);
    b.add(UNROLL * bStep);
    n.set(n.minus(UNROLL));
  });
  f.while(n, () => {
    step(a, 0);
    a.add(aStep);
    b.add(bStep);
    n.set(n.minus(1));
  });
}
