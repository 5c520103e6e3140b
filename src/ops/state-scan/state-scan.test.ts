import { describe, expect, it } from "vitest";
import {
  type Arrays,
  backwardAll,
  checkGradients,
  expectSame,
  place,
  poison,
  worstError,
} from "../../../test/attention.js";
import { DEVICES, describeOn, deviceOf, OTHERS } from "../../../test/devices.js";
import { attentionTolerance, FINITE_DIFFERENCE } from "../../../test/tolerances.js";
import type { Device } from "../../devices/device.js";
import { getDevice } from "../../devices/get-device.js";
import { Generator } from "../../tensor/random.js";
import { sizeOf } from "../../tensor/shape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { stateScan } from "./index.js";

interface Shape {
  batch?: number;
  chunks: number;
  heads?: number;
  expandedDim: number;
  valueDim: number;
  /** Tokens, with gates; otherwise there are none. */
  time?: number;
  chunkSize?: number;
  initial?: boolean;
  /** Which outputs a gradient arrives for; all by default. */
  upstream?: readonly string[];
}

const ALL = ["enteringS", "enteringZ", "finalS", "finalZ"];

function arrays(shape: Shape) {
  const { batch: B = 1, chunks: N, heads: H = 1, expandedDim: D, valueDim: e, time, initial } = shape;
  const generator = new Generator(7);
  const draw = (dims: number[], value = (x: number) => x): Arrays[string] => ({
    shape: dims,
    values: Float64Array.from({ length: sizeOf(dims) }, () => Math.fround(value(generator.normal()))),
    dtype: "f32",
  });
  const inputs: Arrays = { s: draw([B, N, H, D, e]), z: draw([B, N, H, D]) };
  if (time !== undefined) inputs.logG = draw([B, time, H], (x) => -Math.abs(x) / 4);
  if (initial) Object.assign(inputs, { s0: draw([B, H, D, e]), z0: draw([B, H, D]) });
  const upstream: Arrays = {
    enteringS: draw([B, N, H, D, e]),
    enteringZ: draw([B, N, H, D]),
    finalS: draw([B, H, D, e]),
    finalZ: draw([B, H, D]),
  };
  return { inputs, upstream };
}

function scan(x: Record<string, Tensor>, chunkSize: number | undefined): Record<string, Tensor> {
  const { entering, finalState } = stateScan(
    { s: x.s, z: x.z },
    { logG: x.logG, chunkSize, initialState: x.s0 && { s: x.s0, z: x.z0 } },
  );
  return { enteringS: entering.s, enteringZ: entering.z, finalS: finalState.s, finalZ: finalState.z };
}

async function solve(device: Device, shape: Shape, { inputs, upstream } = arrays(shape)) {
  const x = place(device, inputs, true);
  const up = place(device, upstream);
  poison(device);
  const outs = scan(x, shape.chunkSize);
  const found: Record<string, ArrayLike<number>> = {};
  for (const [name, out] of Object.entries(outs)) found[name] = await out.data();
  poison(device);
  const used = shape.upstream ?? ALL;
  backwardAll(
    used.map((name) => outs[name]),
    used.map((name) => up[name]),
  );
  for (const [name, input] of Object.entries(x)) {
    found[`d${name}`] = input.grad ? await input.grad.data() : new Float64Array(input.size);
  }
  return found;
}

const shapes: Shape[] = [
  { chunks: 3, expandedDim: 5, valueDim: 3 },
  { batch: 2, chunks: 4, heads: 3, expandedDim: 6, valueDim: 4, time: 7, chunkSize: 2, initial: true },
  { chunks: 1, expandedDim: 2, valueDim: 1, time: 5, chunkSize: 8 },
  { chunks: 5, heads: 2, expandedDim: 3, valueDim: 2, initial: true },
  { chunks: 0, expandedDim: 3, valueDim: 2, time: 0, chunkSize: 4, initial: true },
];

describe("gradients of stateScan against central differences", () => {
  it.each(shapes)("%o", async (shape) => {
    const { inputs, upstream } = arrays(shape);
    await checkGradients(inputs, upstream, (x) => scan(x, shape.chunkSize), FINITE_DIFFERENCE);
  });
});

describeOn(OTHERS, "stateScan on %s against the oracle", async (kind) => {
  const device = await deviceOf(kind);
  const oracle = await getDevice("oracle");
  const tolerance = (name: string) => attentionTolerance(kind, "f32", name.startsWith("d") ? "gradient" : "output");

  it.each<Shape>([
    ...shapes,
    { chunks: 0, expandedDim: 3, valueDim: 2 },
    // More than a slice of the state, not a multiple of four numbers.
    { batch: 2, chunks: 4, heads: 2, expandedDim: 1999, valueDim: 17, time: 58, chunkSize: 15, initial: true },
    { chunks: 3, expandedDim: 32769, valueDim: 1, time: 3, chunkSize: 1 },
    { chunks: 3, expandedDim: 64, valueDim: 64, time: 9, chunkSize: 3 },
    { batch: 0, chunks: 3, expandedDim: 4, valueDim: 4 },
  ])("%o", async (shape) => {
    const problem = arrays(shape);
    expectSame(await solve(device, shape, problem), await solve(oracle, shape, problem), tolerance);
  });

  it.each(ALL)("a gradient through %s alone", async (name) => {
    const shape: Shape = {
      chunks: 3,
      heads: 2,
      expandedDim: 6,
      valueDim: 3,
      time: 8,
      chunkSize: 3,
      initial: true,
      upstream: [name],
    };
    const problem = arrays(shape);
    expectSame(await solve(device, shape, problem), await solve(oracle, shape, problem), tolerance);
  });
});

describeOn(DEVICES, "laws of stateScan on %s", async (kind) => {
  const device = await deviceOf(kind);
  const shape: Shape = { chunks: 4, heads: 2, expandedDim: 6, valueDim: 3, time: 8, chunkSize: 2, initial: true };

  it("logG = −Infinity and very negative gates forget, without a NaN", async () => {
    for (const gate of [Number.NEGATIVE_INFINITY, -1e5]) {
      const problem = arrays(shape);
      problem.inputs.logG.values.fill(gate, 4 * 2, 5 * 2); // in chunk 2
      const found = await solve(device, shape, problem);
      for (const [name, values] of Object.entries(found)) {
        expect(Array.from(values).every(Number.isFinite), name).toBe(true);
      }
      // What enters chunk 3 is chunk 2's state alone.
      const block = 2 * 6 * 3;
      expect(
        worstError(Array.from(found.enteringS).slice(3 * block), problem.inputs.s.values.slice(2 * block, 3 * block)),
      ).toBe(0);
    }
  });

  it("without gates, running sums", async () => {
    const plain: Shape = { chunks: 3, expandedDim: 2, valueDim: 2 };
    const problem = arrays(plain);
    problem.inputs.s.values.set([1, 2, 3, 4, 10, 20, 30, 40, 100, 200, 300, 400]);
    const found = await solve(device, plain, problem);
    expect(Array.from(found.enteringS)).toEqual([0, 0, 0, 0, 1, 2, 3, 4, 11, 22, 33, 44]);
    expect(Array.from(found.finalS)).toEqual([111, 222, 333, 444]);
  });

  it("gives its working memory back", async () => {
    await solve(device, shape);
    const x = place(device, arrays(shape).inputs);
    const { used } = device.memory();
    for (let n = 0; n < 3; n++) for (const out of Object.values(scan(x, 2))) out.dispose();
    expect(device.memory().used).toBe(used);
  });
});
