import fc from "fast-check";
import { expect, test } from "vitest";
import { type Expr, f32, f32x4, f64, i32, i32x4, i64, type Local, ModuleBuilder, select, v128 } from "./emitter.js";

/** Instantiates what `write` emits, beside a memory of its own. */
function instantiate(write: (m: ModuleBuilder) => void) {
  const m = new ModuleBuilder({ shared: false, relaxed: false });
  write(m);
  const memory = new WebAssembly.Memory({ initial: 1 });
  const instance = new WebAssembly.Instance(new WebAssembly.Module(m.bytes()), { env: { memory } });
  return { memory, run: instance.exports as Record<string, (...args: number[]) => number> };
}

function ofTwo(write: (a: Local, b: Local) => Expr) {
  const { run } = instantiate((m) =>
    m.function(
      "f",
      [
        ["a", "i32"],
        ["b", "i32"],
      ],
      (f, a, b) => f.return(write(a, b)),
      { exported: true, result: "i32" },
    ),
  );
  return run.f;
}

test("i32 arithmetic wraps and compares as in WebAssembly", () => {
  const cases: [(a: Local, b: Local) => Expr, (a: number, b: number) => number][] = [
    [(a, b) => a.plus(b), (a, b) => (a + b) | 0],
    [(a, b) => a.minus(b), (a, b) => (a - b) | 0],
    [(a, b) => a.times(b), Math.imul],
    [(a) => a.times(8), (a) => Math.imul(a, 8)],
    [(a) => a.times(-3), (a) => Math.imul(a, -3)],
    [(a) => a.times(0), () => 0],
    [i32.min, Math.min],
    [i32.max, Math.max],
    [i32.ltU, (a, b) => Number(a >>> 0 < b >>> 0)],
    [i32.geU, (a, b) => Number(a >>> 0 >= b >>> 0)],
    [i32.shrU, (a, b) => (a >>> b) | 0],
    [(a, b) => select(a, b, i32.lt(a, b)), Math.min],
    [(a, b) => i32.fromI64(i64.add(i64.fromI32(a), i64.fromI32(b))), (a, b) => (a + b) | 0],
  ];
  for (const [write, truth] of cases) {
    const f = ofTwo(write);
    fc.assert(fc.property(fc.integer(), fc.integer(), (a, b) => f(a, b) === truth(a, b)));
  }
});

test("constants of any size survive their encoding", () => {
  for (const value of [0, 1, 63, 64, 127, 128, -1, -64, -65, -128, 2 ** 31 - 1, -(2 ** 31), 0x12345678]) {
    expect(ofTwo(() => i32.const(value))(0, 0)).toBe(value);
  }
  const { run } = instantiate((m) => {
    m.function("f32", [], (f) => f.return(f32.const(0.1)), { exported: true, result: "f32" });
    m.function("f64", [], (f) => f.return(f64.const(-0.1)), { exported: true, result: "f64" });
  });
  expect(run.f32()).toBe(Math.fround(0.1));
  expect(run.f64()).toBe(-0.1);
});

test("loops, conditions, calls and tees", () => {
  const { run, memory } = instantiate((m) => {
    const square = m.function("square", [["x", "i32"]], (f, x) => f.return(x.times(x)), { result: "i32" });
    m.function(
      "squares",
      [["n", "i32"]],
      (f, n) => {
        const sum = f.local("i32", 0);
        const last = f.local("i32");
        f.for(0, n, 1, (i) => {
          f.store("i32", i.times(4), last.tee(f.value(square, i)));
          f.if(
            i32.and(i, 1),
            () => sum.add(last),
            () => sum.set(sum.minus(last)),
          );
        });
        f.return(sum);
      },
      { exported: true, result: "i32" },
    );
  });
  expect(run.squares(5)).toBe(-0 + 1 - 4 + 9 - 16);
  expect([...new Int32Array(memory.buffer, 0, 5)]).toEqual([0, 1, 4, 9, 16]);
  expect(run.squares(0)).toBe(0);
});

test("vectors: lanes, multiply-add, fill and copy", () => {
  const { run, memory } = instantiate((m) =>
    m.function(
      "f",
      [["p", "i32"]],
      (f, p) => {
        const x = f.local("v128", v128.load(p));
        f.store("v128", p, m.madd(x, f32x4.const(2), f32x4.const(1, 2, 3, 4)), 16);
        f.store("v128", p, i32x4.fromF32(f32x4.replace(x, 2, f32.const(9))), 32);
        f.store64Lane(p, x, 1, 48);
        f.fill(p.plus(64), 7, 5);
        f.copy(p.plus(80), p, 8);
      },
      { exported: true },
    ),
  );
  new Float32Array(memory.buffer, 0, 4).set([1, 2, 3, 4]);
  run.f(0);
  expect([...new Float32Array(memory.buffer, 16, 4)]).toEqual([3, 6, 9, 12]);
  expect([...new Int32Array(memory.buffer, 32, 4)]).toEqual([1, 2, 9, 4]);
  expect([...new Float32Array(memory.buffer, 48, 2)]).toEqual([3, 4]);
  expect([...new Uint8Array(memory.buffer, 64, 6)]).toEqual([7, 7, 7, 7, 7, 0]);
  expect([...new Float32Array(memory.buffer, 80, 2)]).toEqual([1, 2]);
});

test("types and argument counts are checked while emitting", () => {
  expect(() => f32x4.add(i32.const(1), f32x4.const(1))).toThrow("emitter: expected v128, got i32");
  expect(() =>
    instantiate((m) => {
      const f = m.function("f", [["x", "i32"]], () => {});
      m.function("g", [], (g) => g.call(f));
    }),
  ).toThrow("emitter: 1 arguments, got 0");
});
