import { describe, expect, it, vi } from "vitest";
import { type Arrays, checkGradients, expectClose, place, poison, randomInputs } from "../../../test/attention.js";
import { DEVICES, describeOn, describeOnGpu, deviceOf, OTHERS } from "../../../test/devices.js";
import { attentionTolerance, FINITE_DIFFERENCE } from "../../../test/tolerances.js";
import type { Device, DeviceKind } from "../../devices/device.js";
import { getDevice } from "../../devices/get-device.js";
import type { WebGpuDevice } from "../../devices/webgpu/device.js";
import { type TunedTiles, tileProblem } from "../../devices/webgpu/legal-tiles.js";
import { matricesOf } from "../../devices/webgpu/matrix-text.js";
import { type DType, fromBF16Bits, fromF16Bits, toBF16Bits, toF16Bits } from "../../tensor/dtype.js";
import { softmaxAttention } from "./index.js";

interface Shape {
  batch?: number;
  time: number;
  queryHeads?: number;
  heads?: number;
  headDim: number;
  valueDim?: number;
  dtype?: Exclude<DType, "i32">;
  scale?: number;
}

function arrays(shape: Shape) {
  const { batch = 1, queryHeads = 1, heads = 1, valueDim = shape.headDim } = shape;
  return randomInputs({ ...shape, batch, queryHeads, heads, valueDim, degree: 1 });
}

/** The output and the three gradients, every result written over freed NaN. */
async function solve(device: Device, { inputs, upstream }: ReturnType<typeof arrays>, scale?: number) {
  const { q, k, v } = place(device, inputs, true);
  const { output: up } = place(device, upstream);
  poison(device);
  const output = softmaxAttention(q, k, v, scale === undefined ? {} : { scale });
  poison(device);
  output.backward(up);
  const found: Record<string, ArrayLike<number>> = { output: await output.data() };
  for (const [name, x] of Object.entries({ q, k, v })) {
    expect(x.grad?.dtype).toBe(x.dtype);
    expect(x.grad?.shape).toEqual(x.shape);
    found[`d${name}`] = await x.grad!.data();
  }
  return found;
}

const toleranceOf = (kind: "oracle" | "wasm" | "webgpu", name: string, dtype: Shape["dtype"] = "f32") =>
  attentionTolerance(kind, dtype, name === "output" ? "output" : "gradient");

describe("gradients of softmaxAttention against central differences", () => {
  it.each<Shape>([
    { time: 5, headDim: 3, valueDim: 2 },
    { batch: 2, time: 4, queryHeads: 4, heads: 2, headDim: 2, valueDim: 3, scale: -0.7 },
    { time: 1, headDim: 2 },
  ])("%o", async (shape) => {
    const { inputs, upstream } = arrays(shape);
    const { scale = 0.5 } = shape;
    const run = ({ q, k, v }: ReturnType<typeof place>) => ({ output: softmaxAttention(q, k, v, { scale }) });
    await checkGradients(inputs, upstream, run, FINITE_DIFFERENCE);
  });
});

describeOn(OTHERS, "softmaxAttention on %s against the oracle", async (kind) => {
  const device = await deviceOf(kind);
  const oracle = await getDevice("oracle");
  const check = async (shape: Shape, problem = arrays(shape)) => {
    const got = await solve(device, problem, shape.scale);
    const want = await solve(oracle, problem, shape.scale);
    for (const name of Object.keys(want)) {
      expectClose(got[name], want[name], toleranceOf(kind, name, shape.dtype), `${name} of ${JSON.stringify(shape)}`);
    }
  };

  it.each([0, 2, 15, 16, 17, 63, 64, 65, 100, 255, 257, 333])("T = %i", (time) =>
    check({ batch: 2, time, queryHeads: 2, heads: 2, headDim: 16, valueDim: 12 }),
  );

  it("T = 1: the value itself, and no gradient for q and k", async () => {
    const problem = arrays({ batch: 2, time: 1, queryHeads: 2, headDim: 5, valueDim: 9 });
    const [got, want] = [await solve(device, problem), await solve(oracle, problem)];
    for (const name of ["output", "dv"]) expectClose(got[name], want[name], toleranceOf(kind, name), name);
    // Zero in truth: two sums of the same products, in different order.
    for (const name of ["dq", "dk"]) {
      expect(Math.max(...Array.from(got[name], Math.abs)), name).toBeLessThan(toleranceOf(kind, name));
    }
  });

  it.each([
    [1, 1],
    [3, 5],
    [7, 8],
    [16, 64],
    [33, 1],
    [64, 64],
    [1, 130],
    [128, 96],
    [255, 7],
    [256, 256],
  ])("d = %i, e = %i", async (headDim, valueDim) => {
    for (const time of [19, 90]) await check({ time, headDim, valueDim });
  });

  it.each([
    [2, 1],
    [6, 2],
    [12, 1],
    [9, 9],
  ])("%i query heads of %i key heads", (queryHeads, heads) =>
    check({ batch: 2, time: 70, queryHeads, heads, headDim: 8, valueDim: 4 }),
  );

  it.each(["f16", "bf16"] as const)("%s", async (dtype) => {
    await check({ batch: 2, time: 81, queryHeads: 4, heads: 2, headDim: 20, valueDim: 13, dtype });
    await check({ time: 300, headDim: 64, dtype });
  });

  it.each([0, -0.3, 1, 4])("scale %f", (scale) => check({ time: 100, headDim: 8, scale }));

  it("scores of hundreds, rising and falling along the sequence", async () => {
    for (const slope of [4, -4]) {
      const problem = arrays({ time: 150, headDim: 1, valueDim: 3 });
      problem.inputs.q.values.fill(1);
      const keys = problem.inputs.k.values;
      for (const j of keys.keys()) keys[j] = slope * j;
      const [got, want] = [await solve(device, problem, 1), await solve(oracle, problem, 1)];
      for (const name of ["output", "dk", "dv"]) expectClose(got[name], want[name], toleranceOf(kind, name), name);
      // dq is what is left of keys of hundreds times weights' gradients of about 1.
      const worst = Math.max(...Array.from(got.dq, (x, n) => Math.abs(x - want.dq[n])));
      expect(worst).toBeLessThan(toleranceOf(kind, "dq") * 149 * Math.abs(slope));
    }
  });

  it("a long sequence, many segments of keys", () => check({ time: 1200, headDim: 4, valueDim: 4 }));
});

type Half = "f16" | "bf16";
type HalfCheck = (
  shape: Shape & { dtype: Half },
  change?: (problem: ReturnType<typeof arrays>) => void,
) => Promise<void>;

/** Against the oracle; `change` may set any value: it is rounded to the dtype before both devices get it. */
async function halfCheck(kind: DeviceKind, device: Device): Promise<HalfCheck> {
  const oracle = await getDevice("oracle");
  return async (shape, change) => {
    const problem = arrays(shape);
    change?.(problem);
    const round = (x: number) => (shape.dtype === "f16" ? fromF16Bits(toF16Bits(x)) : fromBF16Bits(toBF16Bits(x)));
    for (const part of [problem.inputs, problem.upstream]) {
      for (const { values } of Object.values(part)) values.set(Array.from(values, round));
    }
    const [got, want] = [await solve(device, problem, shape.scale), await solve(oracle, problem, shape.scale)];
    for (const name of Object.keys(want)) {
      expectClose(got[name], want[name], toleranceOf(kind, name, shape.dtype), `${name} of ${JSON.stringify(shape)}`);
    }
  };
}

/** Scores, values and gradients that rise (sign 1) or fall along a sequence of 200 tokens, by powers of two. */
const rising =
  (sign: number) =>
  ({ inputs, upstream }: ReturnType<typeof arrays>) => {
    const along = (values: Float64Array, width: number, from: number, to: number) => {
      for (const n of values.keys()) values[n] *= 2 ** (from + ((to - from) * Math.floor(n / width)) / 200);
    };
    along(inputs.k.values, 16, -3 * sign, 3 * sign);
    along(inputs.v.values, 12, 4 * sign, -4 * sign);
    along(upstream.output.values, 12, -4 * sign, 4 * sign);
  };

describeOn(OTHERS, "softmaxAttention of halves on %s", async (kind) => {
  const device = await deviceOf(kind);
  const check = await halfCheck(kind, device);
  const base = { batch: 2, time: 70, queryHeads: 4, heads: 2, headDim: 16, valueDim: 12 };
  const scaled =
    (factors: Partial<Record<"q" | "k" | "v" | "output", number>>) => (problem: ReturnType<typeof arrays>) => {
      const all = { ...problem.inputs, ...problem.upstream };
      for (const [name, factor] of Object.entries(factors)) {
        const { values } = all[name as keyof typeof all];
        for (const n of values.keys()) values[n] *= factor;
      }
    };

  it.each([2, 15, 16, 17, 31, 32, 33, 64, 100, 257])("T = %i", async (time) => {
    for (const dtype of ["f16", "bf16"] as const) await check({ ...base, time, dtype });
  });

  it.each([
    [1, 1],
    [7, 20],
    [64, 64],
    [96, 128],
  ])("d = %i, e = %i", (headDim, valueDim) => check({ ...base, headDim, valueDim, dtype: "bf16" }));

  it.each([
    [2, 1],
    [9, 3],
    [4, 4],
  ])("%i query heads of %i key heads", (queryHeads, heads) => check({ ...base, queryHeads, heads, dtype: "f16" }));

  it.each([-0.3, 4])("scale %f", (scale) => check({ ...base, scale, dtype: "f16" }));

  it.each<[string, Parameters<typeof scaled>[0]]>([
    ["queries of 2^60 and keys of 2^-60", { q: 2 ** 60, k: 2 ** -60 }],
    ["keys of 2^60 and queries of 2^-60", { q: 2 ** -60, k: 2 ** 60 }],
    ["scores of next to nothing", { q: 2 ** -40, k: 2 ** -30 }],
    ["values of 2^40 and gradients of 2^-50", { v: 2 ** 40, output: 2 ** -50 }],
    ["values of 2^-40 and gradients of 2^50", { v: 2 ** -40, output: 2 ** 50 }],
  ])("bf16 beyond the range of f16: %s", (_, factors) => check({ ...base, dtype: "bf16" }, scaled(factors)));

  it.each([
    ["rising", 1],
    ["falling", -1],
  ])("scores, values and gradients %s along the sequence", (_, sign) =>
    check({ time: 200, headDim: 16, valueDim: 12, scale: 1, dtype: "bf16" }, rising(sign)),
  );

  it("a score of hundreds in the middle, and values of nothing but zeros", () =>
    check({ time: 150, headDim: 16, valueDim: 12, scale: 1, dtype: "bf16" }, ({ inputs: { q, k, v } }) => {
      for (let n = 0; n < 16; n++) k.values[71 * 16 + n] = 20 * q.values[100 * 16 + n];
      v.values.fill(0, 40 * 12, 80 * 12);
    }));

  it("thousands of keys that weigh alike keep their digits", async () => {
    const time = 5000;
    const { inputs } = arrays({ time, headDim: 8, valueDim: 1, dtype: "bf16" });
    inputs.q.values.fill(0);
    const values = inputs.v.values.map((x) => fromBF16Bits(toBF16Bits(x + 1)));
    inputs.v.values = values;
    let sum = 0;
    const means = values.map((x, t) => {
      sum += x;
      return sum / (t + 1);
    });
    const { q, k, v } = place(device, inputs);
    const out = await softmaxAttention(q, k, v).data();
    // Rounded to bf16, each by itself: an error of what came before would be seen in their sum.
    expectClose(out, means, 2 ** -8, "means");
    const off = means.reduce((total, mean, t) => total + (out[t] - mean) / mean, 0) / time;
    expect(Math.abs(off)).toBeLessThan(2 ** -11);
  });

  it("whatever finite values the future holds, bit for bit", async () => {
    const { inputs } = arrays({ ...base, batch: 1, dtype: "bf16" });
    const run = async (changed: Arrays) => {
      const { q, k, v } = place(device, changed);
      return softmaxAttention(q, k, v).data();
    };
    const plain = await run(inputs);
    for (const value of [7, 1e30, -1e-30]) {
      for (const cut of [1, 16, 37, 64]) {
        const changed: Arrays = structuredClone(inputs);
        for (const { values } of Object.values(changed)) {
          values.fill(value, (values.length / base.time) * cut);
        }
        const past = (plain.length / base.time) * cut;
        expect((await run(changed)).slice(0, past), `${value} from token ${cut}`).toEqual(plain.slice(0, past));
      }
    }
  });
});

describeOnGpu("softmaxAttention on matrix units", async () => {
  const device = (await deviceOf("webgpu")) as WebGpuDevice;
  const check = await halfCheck("webgpu", device);
  const { matrixUnits, gpu, tuned } = device;

  // Tiles with several lanes for a row and several matrices for a subgroup; the shapes are those of a GPU played by a processor.
  it.runIf(matrixUnits?.subgroupSize === 8).each<TunedTiles>([
    {
      softmax: { rows: 16, keys: 16, down: 1, across: 2 },
      softmaxQueries: { rows: 16, keys: 32, down: 2, across: 2 },
      softmaxKeys: { rows: 32, queries: 32, down: 2, across: 2 },
    },
    {
      softmax: { rows: 16, keys: 32, down: 2, across: 2 },
      softmaxQueries: { rows: 32, keys: 16, down: 2, across: 2 },
      softmaxKeys: { rows: 16, queries: 16, down: 1, across: 2 },
    },
  ])("tiles %o", async (tiles) => {
    for (const [kernel, tile] of Object.entries(tiles)) {
      expect(tileProblem(kernel, tile, matricesOf(matrixUnits!), gpu.limits, { x: 2, y: 2, sumAt: 2 })).toBeUndefined();
    }
    const compiled = vi.spyOn(gpu, "createShaderModule");
    Object.assign(tuned, tiles);
    try {
      for (const sign of [1, -1]) {
        await check({ time: 200, headDim: 16, valueDim: 12, scale: 1, dtype: "bf16" }, rising(sign));
      }
      await check({ batch: 2, time: 70, queryHeads: 4, heads: 2, headDim: 16, valueDim: 12, dtype: "f16" });
      const names = compiled.mock.calls.map(([{ label }]) => label);
      for (const name of ["softmax-on-matrix-units", "softmax-gradient-queries", "softmax-gradient-keys"]) {
        expect(names).toContain(name);
      }
    } finally {
      compiled.mockRestore();
      for (const kernel of Object.keys(tiles)) delete tuned[kernel];
    }
  });
});

describeOn(DEVICES, "laws of softmaxAttention on %s", async (kind) => {
  const device = await deviceOf(kind);
  const shape = { batch: 2, time: 83, queryHeads: 4, heads: 2, headDim: 5, valueDim: 3 };
  const run = async (inputs: Arrays, scale = 1) => {
    const { q, k, v } = place(device, inputs);
    return softmaxAttention(q, k, v, { scale }).data();
  };

  it("keys that all score alike give the mean of the values so far", async () => {
    const { inputs } = arrays({ time: 100, headDim: 3, valueDim: 1 });
    inputs.q.values.fill(0);
    const values = inputs.v.values;
    let sum = 0;
    const means = values.map((x, t) => {
      sum += x;
      return sum / (t + 1);
    });
    expectClose(await run(inputs), means, toleranceOf(kind, "output"), "means");
  });

  it("a constant v comes out as it is", async () => {
    const { inputs } = arrays(shape);
    inputs.v.values.fill(-0.625);
    const out = await run(inputs);
    expectClose(out, new Float64Array(out.length).fill(-0.625), toleranceOf(kind, "output"), "output");
  });

  it("adding a vector to all keys leaves the output alone", async () => {
    const { inputs } = arrays(shape);
    const plain = await run(inputs);
    inputs.k.values.forEach((_, n, k) => {
      k[n] = Math.fround(k[n] + [3, -2, 1, 0, 5][n % 5]);
    });
    expectClose(await run(inputs), plain, 20 * Math.max(toleranceOf(kind, "output"), 1e-7), "shifted keys");
  });

  it("causal bit for bit, whatever the future holds", async () => {
    const { inputs } = arrays(shape);
    const plain = await run(inputs);
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 7]) {
      for (const cut of [1, 4, 16, 37, 64, 82]) {
        const changed: Arrays = structuredClone(inputs);
        for (const { values } of Object.values(changed)) {
          const width = values.length / shape.batch / shape.time;
          for (let b = 0; b < shape.batch; b++) {
            values.fill(value, (b * shape.time + cut) * width, (b + 1) * shape.time * width);
          }
        }
        const out = await run(changed);
        const width = plain.length / shape.batch / shape.time;
        for (let b = 0; b < shape.batch; b++) {
          const [from, to] = [b * shape.time * width, (b * shape.time + cut) * width];
          expect(out.slice(from, to), `${value} from token ${cut}`).toEqual(plain.slice(from, to));
        }
      }
    }
  });

  it("gradients of earlier queries know nothing of later keys and values", async () => {
    const problem = arrays({ time: 40, headDim: 4, valueDim: 4 });
    const cut = 21;
    const plain = await solve(device, problem);
    const changed = structuredClone(problem);
    changed.inputs.k.values.fill(Number.NaN, cut * 4);
    changed.inputs.v.values.fill(Number.POSITIVE_INFINITY, cut * 4);
    const found = await solve(device, changed);
    expect(Array.from(found.dq).slice(0, cut * 4)).toEqual(Array.from(plain.dq).slice(0, cut * 4));
  });

  it("scores of −∞ weigh nothing, also where they come first", async () => {
    const { inputs } = arrays({ time: 90, headDim: 2, valueDim: 3 });
    const masked = 70; // more than a block of keys
    inputs.q.values.forEach((x, n, q) => {
      q[n] = n % 2 ? x : 1;
    });
    inputs.k.values.forEach((x, n, k) => {
      k[n] = n % 2 || n >= 2 * masked ? x : Number.NEGATIVE_INFINITY;
    });
    const out = Array.from(await run(inputs));
    expect(out.slice(0, 3 * masked).every(Number.isNaN)).toBe(true);
    const crop = (values: Float64Array, width: number) => values.slice(masked * width);
    const alone: Arrays = {
      q: { ...inputs.q, shape: [1, 20, 1, 2], values: crop(inputs.q.values, 2) },
      k: { ...inputs.k, shape: [1, 20, 1, 2], values: crop(inputs.k.values, 2) },
      v: { ...inputs.v, shape: [1, 20, 1, 3], values: crop(inputs.v.values, 3) },
    };
    expectClose(out.slice(3 * masked), await run(alone), toleranceOf(kind, "output"), "after the mask");
  });

  it("reads views without copies: transposed, sliced and expanded inputs", async () => {
    const { inputs } = arrays({ ...shape, queryHeads: 2 });
    const { q, k, v } = place(device, inputs);
    const plain = await softmaxAttention(q, k, v).data();
    const byHead = k.transpose(1, 2).contiguous().transpose(1, 2);
    expect(await softmaxAttention(q, byHead, v).data()).toEqual(plain);
    const one = v.slice(2, 0, 1).expand(v.shape);
    expect(await softmaxAttention(q, k, one).data()).toEqual(await softmaxAttention(q, k, one.contiguous()).data());
    const part = await softmaxAttention(q.slice(1, 0, 50), k.slice(1, 0, 50), v.slice(1, 0, 50)).data();
    const half = plain.length / 2;
    const length = (half / shape.time) * 50;
    expect(part.slice(0, length)).toEqual(plain.slice(0, length));
    expect(part.slice(length)).toEqual(plain.slice(half, half + length));
  });
});

describe("softmaxAttention on wasm", async () => {
  it("one thread and two give the same bits", async () => {
    const [one, two] = await Promise.all([1, 2].map((threads) => getDevice("wasm", { threads })));
    const problem = arrays({ batch: 1, time: 700, queryHeads: 2, heads: 1, headDim: 8 });
    expect(await solve(two, problem)).toEqual(await solve(one, problem));
    one.dispose();
    two.dispose();
  });

  it("check mode finds nothing to report in ragged lengths, and names the operation of a NaN", async () => {
    const device = await getDevice("wasm", { threads: 1, check: true });
    const { inputs, upstream } = arrays({ time: 19, headDim: 5, valueDim: 3 });
    for (const dtype of ["f32", "bf16"] as const) {
      const { q, k, v } = place(device, inputs, true);
      poison(device);
      const out = softmaxAttention(q.to(dtype), k.to(dtype), v.to(dtype));
      out.backward(place(device, upstream).output.to(dtype));
    }
    inputs.k.values[7] = Number.NaN;
    const { q, k, v } = place(device, inputs);
    expect(() => softmaxAttention(q, k, v)).toThrow(/^softmaxAttention: produced a NaN/);
    device.dispose();
  });

  it("gives all memory back but its outputs, which do not grow with T²", async () => {
    const device = await getDevice("wasm", { threads: 1 });
    const peak = async (time: number) => {
      const { inputs, upstream } = arrays({ time, headDim: 8 });
      const { q, k, v } = place(device, inputs, true);
      const { output: up } = place(device, upstream);
      const before = device.memory().used;
      device.resetPeak();
      const out = softmaxAttention(q, k, v);
      out.backward(up);
      const most = device.memory().peak - before;
      for (const x of [q.grad!, k.grad!, v.grad!, out]) x.dispose();
      for (const x of [q, k, v, up]) x.dispose();
      return most;
    };
    await peak(64); // compiles
    const { used } = device.memory();
    const [short, long] = [await peak(256), await peak(4096)];
    expect(device.memory().used).toBe(used);
    expect(long).toBeLessThan(16 * short);
    device.dispose();
  });
});
