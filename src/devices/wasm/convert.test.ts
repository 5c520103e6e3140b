import { afterAll, beforeAll, expect, test } from "vitest";
import { type DType, fromBF16Bits, fromF16Bits, toBF16Bits, toF16Bits } from "../../tensor/dtype.js";
import { Generator } from "../../tensor/random.js";
import { load1, load4, store1, store4 } from "./convert.js";
import { WasmDevice } from "./device.js";
import { type Expr, type FunctionBuilder, i32 } from "./emitter.js";
import { Arguments, KERNEL_PARAMS } from "./kernel.js";

const layout = new Arguments({ from: "i32", to: "i32", bytes: "i32" });
let device: WasmDevice;

beforeAll(async () => {
  device = await WasmDevice.create({ threads: 1 });
});
afterAll(() => device.dispose());

/** Runs a copying kernel over `input`, which converts from one dtype to another, four or one at a time. */
function convert(input: Uint32Array | Uint16Array, from: DType, to: DType, wide: boolean): ArrayBuffer {
  const size = (dtype: DType) => (dtype === "f32" || dtype === "i32" ? 4 : 2);
  const step = wide ? 4 : 1;
  const module = device.module(`test ${from} ${to} ${step}`, (m) => {
    m.function(
      "copy",
      KERNEL_PARAMS,
      (f: FunctionBuilder, args) => {
        const a = layout.locals(f, args);
        f.for(0, i32.divU(a.bytes, step * size(from)), 1, (i) => {
          const at = (base: Expr, dtype: DType) => base.plus(i.times(step * size(dtype)));
          if (wide) store4(f, to, at(a.to, to), load4(f, from, at(a.from, from)));
          else store1(f, to, at(a.to, to), load1(f, from, at(a.from, from)));
        });
      },
      { exported: true },
    );
  });
  const count = input.byteLength / size(from);
  const source = device.reserve(input.byteLength, "test");
  const target = device.reserve(count * size(to), "test");
  new Uint8Array(device.wasmMemory.buffer, source).set(new Uint8Array(input.buffer));
  device.run(module, "copy", layout, { from: source, to: target, bytes: input.byteLength }, 1);
  const out = new Uint8Array(device.wasmMemory.buffer, target, count * size(to)).slice().buffer;
  device.release(source);
  device.release(target);
  return out as ArrayBuffer;
}

const halves = Uint16Array.from({ length: 65536 }, (_, k) => k);

for (const dtype of ["f16", "bf16"] as const) {
  for (const wide of [true, false]) {
    test(`all 65,536 patterns of ${dtype} read as in dtype.ts, ${wide ? "four" : "one"} at a time`, () => {
      const got = new Float32Array(convert(halves, dtype, "f32", wide));
      const read = dtype === "f16" ? fromF16Bits : fromBF16Bits;
      const wrong = halves.filter((bits) => !Object.is(got[bits], Math.fround(read(bits))));
      expect([...wrong.slice(0, 4)]).toEqual([]);
    });

    test(`f32 rounds to ${dtype} as in dtype.ts, ${wide ? "four" : "one"} at a time`, () => {
      const generator = new Generator(7);
      const bits = new Uint32Array(400_000);
      for (let k = 0; k < 200_000; k++) bits[k] = generator.bits();
      // Around every half value: itself, half way to the next, and a bit to either side.
      const read = dtype === "f16" ? fromF16Bits : fromBF16Bits;
      const floats = new Float32Array(bits.buffer);
      for (let k = 200_000; k < bits.length; k++) {
        const half = generator.integer(65535);
        floats[k] = (read(half) + read(half + 1)) / 2;
        if (Number.isFinite(floats[k])) bits[k] += generator.integer(3) - 1;
      }
      floats.set([
        0,
        -0,
        Number.NaN,
        Number.POSITIVE_INFINITY,
        Number.NEGATIVE_INFINITY,
        65519.99,
        65520,
        1e-8,
        3.4e38,
      ]);
      const got = new Uint16Array(convert(bits, "f32", dtype, wide));
      const write = dtype === "f16" ? toF16Bits : toBF16Bits;
      const notANumber = (half: number) => Number.isNaN(read(half));
      const wrong = bits.filter((_, k) => {
        const want = write(floats[k]);
        return got[k] !== want && !(notANumber(got[k]) && notANumber(want));
      });
      expect([...wrong.slice(0, 4)]).toEqual([]);
    });
  }
}

test("i32 converts to f32 and back, truncated", () => {
  const ints = Int32Array.of(0, 1, -1, 7, -12345, 1 << 23, -(1 << 24), 99);
  const widened = convert(new Uint32Array(ints.buffer), "i32", "f32", true);
  expect([...new Float32Array(widened)]).toEqual([...ints]);
  const floats = Float32Array.of(1.9, -1.9, 0.5, -0.5, 3e9, -3e9, 100, -0);
  for (const wide of [true, false]) {
    const back = new Int32Array(convert(new Uint32Array(floats.buffer), "f32", "i32", wide));
    expect([...back]).toEqual([1, -1, 0, 0, 2 ** 31 - 1, -(2 ** 31), 100, 0]);
  }
});
