import { expect, test } from "vitest";
import { fromBF16Bits, fromF16Bits, roundTo, toBF16Bits, toF16Bits } from "./dtype.js";
import { Generator } from "./random.js";

/** The definition: the nearest of all values of the format, ties to the even pattern. Slow; shares no code. */
function nearest(patterns: readonly number[], read: (bits: number) => number, value: number): number {
  const magnitude = Math.abs(value);
  let low = 0;
  let high = patterns.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (read(patterns[middle]) <= magnitude) low = middle;
    else high = middle;
  }
  const [a, b] = [read(patterns[low]), read(patterns[high])];
  if (magnitude >= b) return patterns[high];
  const [below, above] = [magnitude - a, b - magnitude];
  if (below !== above) return below < above ? patterns[low] : patterns[high];
  return patterns[low] % 2 === 0 ? patterns[low] : patterns[high];
}

const formats = {
  // Past the largest finite value, rounding goes as if the exponent range went on: 65536 and 2^128 stand in for ∞.
  f16: { read: fromF16Bits, write: toF16Bits, infinity: 0x7c00, beyond: 65536 },
  bf16: { read: fromBF16Bits, write: toBF16Bits, infinity: 0x7f80, beyond: 2 ** 128 },
};

for (const [name, { read, write, infinity, beyond }] of Object.entries(formats)) {
  test(`${name}: every pattern survives reading and writing`, () => {
    for (let bits = 0; bits < 65536; bits++) {
      if ((bits & 0x7fff) > infinity) expect(read(bits)).toBeNaN();
      else if (write(read(bits)) !== bits) expect.fail(`${bits} became ${write(read(bits))}`);
    }
  });

  test(`${name}: random f32 values round to the nearest, ties to even`, () => {
    const patterns = Array.from({ length: infinity + 1 }, (_, k) => k);
    const value = (bits: number) => (bits === infinity ? beyond : read(bits));
    const generator = new Generator(5);
    const view = new DataView(new ArrayBuffer(4));
    for (let k = 0; k < 20_000; k++) {
      const half = generator.integer(infinity);
      view.setUint32(0, generator.bits());
      const random = view.getFloat32(0);
      for (const x of [random, Math.fround((value(half) + value(half + 1)) / 2)]) {
        if (Number.isNaN(x)) continue;
        const want = nearest(patterns, value, x) | (x < 0 || Object.is(x, -0) ? 0x8000 : 0);
        if (write(x) !== want) expect.fail(`${x} became ${write(x)}, expected ${want}`);
      }
    }
  });

  test(`${name}: NaN and infinities`, () => {
    expect(read(write(Number.NaN))).toBeNaN();
    expect(write(Number.POSITIVE_INFINITY)).toBe(infinity);
    expect(write(Number.NEGATIVE_INFINITY)).toBe(infinity | 0x8000);
  });
}

test("known values", () => {
  expect(fromF16Bits(0x3c00)).toBe(1);
  expect(fromF16Bits(0x7bff)).toBe(65504);
  expect(fromF16Bits(1)).toBe(2 ** -24);
  expect(fromBF16Bits(0xc049)).toBe(-3.140625);
  expect(roundTo("bf16", Math.PI)).toBe(3.140625);
  expect(roundTo("i32", -1.9)).toBe(-1);
  expect(roundTo("f32", 0.1)).toBe(Math.fround(0.1));
});
