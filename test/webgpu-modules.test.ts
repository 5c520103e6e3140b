import { expect, test } from "vitest";
import type { Device } from "../src/devices/device.js";
import { getDevice } from "../src/devices/get-device.js";
import { findAdapter } from "../src/devices/webgpu/adapter.js";
import { adamw } from "../src/ops/adamw/index.js";
import { crossEntropy, linearCrossEntropy } from "../src/ops/cross-entropy/index.js";
import { embedding } from "../src/ops/embedding/index.js";
import { layerNorm, norm } from "../src/ops/layer-norm/index.js";
import { linear } from "../src/ops/linear/index.js";
import { normLinear } from "../src/ops/linear/norm-linear.js";
import { rmsNorm } from "../src/ops/rms-norm/index.js";
import { rotary, rotaryAngles } from "../src/ops/rotary/index.js";
import { squareSum } from "../src/ops/square-sum/index.js";
import { tensor } from "../src/tensor/create.js";
import { Generator } from "../src/tensor/random.js";
import type { Tensor } from "../src/tensor/tensor.js";
import { expectClose, expectLikeOracle } from "./compare.js";
import { describeOnGpu, hasAdapter } from "./devices.js";

const oracle = await getDevice("oracle");
const device = hasAdapter ? await getDevice("webgpu") : oracle;
const dtypes = ["f32", "f16", "bf16"] as const;

/** Integers that a function takes beside its differentiable inputs, on whichever device those are. */
const integers = (like: Tensor, values: number[], shape = [values.length]) =>
  tensor(values, shape, { device: like.device, dtype: "i32" });

describeOnGpu("operations of modules on webgpu", () => {
  test.each(dtypes)("linear, %s", async (dtype) => {
    for (const activation of ["none", "gelu", "relu", "silu"] as const) {
      await expectLikeOracle(device, oracle, activation, (x, w, b) => linear(x, w, b, { activation }), {
        shapes: [[3, 5, 20], [34, 20], [34]],
        dtype,
      });
    }
    // Few rows, read in vectors; and a residual on top, on both paths.
    for (const [rows, outputs, inputs] of [
      [1, 51, 64],
      [3, 51, 64],
      [4, 34, 1032],
      [9, 40, 64],
    ]) {
      await expectLikeOracle(device, oracle, `${rows} rows`, (x, w, b) => linear(x, w, b, { activation: "gelu" }), {
        shapes: [[rows, inputs], [outputs, inputs], [outputs]],
        value: (x) => x / 8,
        dtype,
      });
      const add = (x: Tensor, w: Tensor, r: Tensor) => linear(x, w, undefined, { residual: r.to("f32") });
      await expectLikeOracle(device, oracle, `residual, ${rows} rows`, add, {
        shapes: [
          [rows, inputs],
          [outputs, inputs],
          [rows, outputs],
        ],
        dtype,
      });
    }
    // So many rows that the weight's gradient is summed up in parts.
    await expectLikeOracle(device, oracle, "many rows", (x, w) => linear(x, w), {
      shapes: [
        [2, 1024, 8],
        [6, 8],
      ],
      dtype,
    });
    await expectLikeOracle(device, oracle, "no bias", (x, w) => linear(x, w), {
      shapes: [
        [7, 6],
        [5, 6],
      ],
      dtype,
    });
  });

  test.each(dtypes)("norms, %s", async (dtype) => {
    for (const width of dtype === "f32" ? [1, 7, 150, 300, 768] : [7, 768]) {
      const shapes = [[3, 70, width], [width], [width]];
      const value = (x: number, input: number) => (input === 0 ? x + 1 : x);
      if (width > 1) {
        await expectLikeOracle(device, oracle, `layer norm ${width}`, (x, w, b) => layerNorm(x, w, b), {
          shapes,
          dtype,
          value,
        });
      }
      const stream = (x: Tensor, w: Tensor) => {
        const { output, passed } = norm("norm", x, w, undefined, width > 1, 1e-5);
        return output.add(passed);
      };
      await expectLikeOracle(device, oracle, `a stream past a norm ${width}`, stream, {
        shapes: shapes.slice(0, 2),
        dtype,
        value,
      });
      await expectLikeOracle(device, oracle, `rms norm ${width}`, (x, w) => rmsNorm(x, w), {
        shapes: shapes.slice(0, 2),
        dtype,
        value,
      });
    }
  });

  test.each(dtypes)("a norm and its products in one, %s", async (dtype) => {
    // With fewer bindings products go by themselves.
    const gpu = await (await findAdapter())!.requestDevice();
    const few = await getDevice("webgpu", { device: gpu });
    for (const [rows, width, centered] of [
      [1, 768, true],
      [3, 64, false],
      [4, 768, true],
      [5, 64, true], // too many rows, and
      [2, 20, true], // no whole vectors: one after the other
    ] as const) {
      const generator = new Generator(8);
      const draw = (count: number, mean = 0) => Array.from({ length: count }, () => mean + generator.normal());
      const [x, w, b, matrix] = [draw(rows * width, 0.5), draw(width, 1), draw(width), draw(51 * width)];
      const run = async (on: Device) => {
        const make = (values: number[], shape: number[], kind: typeof dtype = "f32") =>
          tensor(values, shape, { device: on, dtype: kind });
        const bias = centered ? make(b, [width]) : undefined;
        const before = { weight: make(w, [width]), bias, epsilon: 1e-5, centered };
        const weight = make(matrix, [51, width], dtype);
        const bias51 = make(matrix.slice(0, 51), [51]);
        const first = { weight, bias: bias51, activation: "gelu", dtype: "f32" } as const;
        const second = { weight: weight.slice(0, 7, 19), bias: make(b.slice(0, 12), [12]), dtype: "f32" } as const;
        const results = normLinear(make(x, [1, rows, width]), before, first, second);
        expect(results.map(({ shape }) => shape)).toEqual([
          [1, rows, 51],
          [1, rows, 12],
        ]);
        const alone = normLinear(make(x, [1, rows, width]), before, second);
        return Promise.all([...results, ...alone].map((result) => result.data()));
      };
      const truth = await run(oracle);
      const tolerance = dtype === "bf16" ? 8e-3 : 1e-3;
      for (const on of [device, few]) {
        for (const [n, values] of (await run(on)).entries()) {
          expectClose(`${rows} rows of ${width}, result ${n}`, values, truth[n], tolerance);
        }
      }
    }
    few.dispose();
    gpu.destroy();
  });

  test.each(dtypes)("rotary, %s", async (dtype) => {
    const { cos, sin } = rotaryAngles(6, 3, 5);
    const table = (x: Tensor, values: Float32Array) => tensor(values, [5, 3], { device: x.device });
    const turn = (x: Tensor) => rotary(x, table(x, cos), table(x, sin));
    await expectLikeOracle(device, oracle, "rotary", turn, { shapes: [[2, 5, 3, 6]], dtype });
    const wide = rotaryAngles(32, 3, 5);
    const angles = (x: Tensor, values: Float32Array) => tensor(values, [5, 16], { device: x.device });
    const turnWide = (x: Tensor) => rotary(x.slice(2, 1, 3), angles(x, wide.cos), angles(x, wide.sin));
    await expectLikeOracle(device, oracle, "eight pairs at a time", turnWide, { shapes: [[2, 5, 4, 32]], dtype });
    await expectLikeOracle(device, oracle, "of a view", (x) => turn(x.slice(2, 1, 3)), {
      shapes: [[2, 5, 4, 6]],
      dtype,
    });
  });

  test.each(dtypes)("embedding, %s", async (dtype) => {
    const ids = [4, 0, 4, 2, 1, 4];
    await expectLikeOracle(device, oracle, "embedding", (w) => embedding(w, integers(w, ids, [2, 3])), {
      shapes: [[5, 9]],
      dtype,
    });
    for (const to of ["f32", dtype] as const) {
      const look = (w: Tensor) => embedding(w, integers(w, [...ids, ...ids, 3]), { dtype: to });
      await expectLikeOracle(device, oracle, `eight at a time, to ${to}`, look, { shapes: [[5, 1208]], dtype });
    }
    const many = Array.from({ length: 700 }, (_, k) => (k * 7) % 3);
    await expectLikeOracle(device, oracle, "many", (w) => embedding(w, integers(w, many)), {
      shapes: [[3, 300]],
      dtype: "f32",
    });
  });

  test.each(dtypes)("cross-entropy, %s", async (dtype) => {
    const targets = [3, -1, 0, 299, 7];
    await expectLikeOracle(device, oracle, "of logits", (x) => crossEntropy(x, integers(x, targets)), {
      shapes: [[5, 300]],
      dtype,
    });
    const run = (x: Tensor, w: Tensor) => linearCrossEntropy(x, w, integers(x, targets));
    await expectLikeOracle(device, oracle, "of a product", run, {
      shapes: [
        [5, 8],
        [300, 8],
      ],
      dtype,
    });
  });

  test("AdamW and the norm it clips by", async () => {
    const generator = new Generator(5);
    const draw = () => Array.from({ length: 1001 }, () => generator.normal());
    const [start, ...gradients] = [draw(), draw(), draw()];
    const train = async (on: Device) => {
      const make = (values: number[]) => tensor(values, [1001], { device: on });
      const parameter = make(start);
      const rounded = tensor(start, [1001], { device: on, dtype: "bf16" });
      const [mean, square] = [make(start.map(() => 0)), make(start.map(() => 0))];
      for (const [k, values] of gradients.entries()) {
        const gradient = make(values);
        const squaredNorm = squareSum([gradient, make([...values].reverse())]);
        const plan = {
          learningRate: 0.1,
          beta1: 0.9,
          beta2: 0.99,
          epsilon: 1e-8,
          weightDecay: 0.1,
          step: k + 1,
          maxNorm: 2,
        };
        adamw(plan, { parameter, rounded, gradient, mean, square, squaredNorm });
      }
      return [await parameter.data(), await mean.data(), await square.data(), await rounded.data()];
    };
    const [got, want] = [await train(device), await train(oracle)];
    for (const k of [0, 1, 2]) expectClose(`part ${k}`, got[k], want[k], 2e-6);
    expectClose("rounded", got[3], want[3], 2 ** -8);
  });

  test("an id or a target out of range shows as NaN", async () => {
    const w = tensor([1, 2, 3, 4], [2, 2], { device });
    expect([...(await embedding(w, integers(w, [1, 5])).data())]).toEqual([3, 4, Number.NaN, Number.NaN]);
    expect(await crossEntropy(w, integers(w, [0, 2])).item()).toBeNaN();
  });
});
