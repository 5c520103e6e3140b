import { expect, test } from "vitest";
import { describeOn, deviceOf } from "../../../test/devices.js";
import { tensor } from "../../tensor/create.js";
import type { DType } from "../../tensor/dtype.js";
import { Generator } from "../../tensor/random.js";
import { squareSum } from "./index.js";

describeOn(["oracle", "wasm", "webgpu"], "squareSum on %s", async (kind) => {
  const device = await deviceOf(kind);

  test.each([1, 7, 8, 17])("%i tensors of any sizes and dtypes count once each", async (count) => {
    const generator = new Generator(count);
    const sizes = [1, 3, 256, 8191, 40_000, 2, 77];
    const dtypes: DType[] = ["f32", "f16", "bf16"];
    let want = 0;
    const tensors = Array.from({ length: count }, (_, n) => {
      const size = sizes[n % sizes.length];
      // Quarters of small integers: every dtype holds them.
      const values = Float32Array.from({ length: size }, () => (generator.integer(17) - 8) / 4);
      for (const value of values) want += value ** 2;
      return tensor(values, [size], { device, dtype: dtypes[n % dtypes.length] });
    });
    expect((await squareSum(tensors).item()) / want).toBeCloseTo(1, 5);
  });
});
