import { describe, it } from "vitest";
import type { DeviceKind } from "../src/devices/device.js";
import { expandedDim } from "../src/feature-map.js";
import { chunkAttention } from "../src/ops/chunk-attention/index.js";
import { chunkState } from "../src/ops/chunk-state/index.js";
import { featureMap } from "../src/ops/feature-map/index.js";
import { queryState } from "../src/ops/query-state/index.js";
import { softmaxAttention } from "../src/ops/softmax-attention/index.js";
import { stateScan } from "../src/ops/state-scan/index.js";
import { powerFull } from "../src/power-attention.js";
import { Generator } from "../src/tensor/random.js";
import { sizeOf } from "../src/tensor/shape.js";
import type { Tensor } from "../src/tensor/tensor.js";
import {
  type Arrays,
  backwardAll,
  checkGradients,
  expectClose,
  expectSame,
  type Problem,
  place,
  randomInputs,
} from "./attention.js";
import { DEVICES, describeOn, deviceOf, OTHERS } from "./devices.js";
import { attentionTolerance, FINITE_DIFFERENCE } from "./tolerances.js";

type Run = (x: Record<string, Tensor>) => Record<string, Tensor>;

function draw(shapes: Record<string, number[]>, seed: number): Arrays {
  const g = new Generator(seed);
  return Object.fromEntries(
    Object.entries(shapes).map(([name, shape]) => {
      const values = Float64Array.from({ length: sizeOf(shape) }, () =>
        Math.fround(name === "logG" ? -Math.log1p(Math.exp(-g.normal())) : g.normal()),
      );
      return [name, { shape, values, dtype: "f32" as const }];
    }),
  );
}

/** Every operation with its inputs and outputs: B=2, T=7, Hq=4, H=2, d=3, e=2, chunks of 3. */
function operations(
  degree: number,
  gated: boolean,
): [string, Record<string, number[]>, Record<string, number[]>, Run][] {
  const [B, T, Hq, H, d, e, N] = [2, 7, 4, 2, 3, 2, 3];
  const D = expandedDim(d, degree);
  const logG: Record<string, number[]> = gated ? { logG: [B, T, H] } : {};
  const q = { q: [B, T, Hq, d] };
  const kv = { k: [B, T, H, d], v: [B, T, H, e] };
  const states = { s: [B, N, H, D, e], z: [B, N, H, D] };
  const result = { output: [B, T, Hq, e], sum: [B, T, Hq] };
  const final = { finalS: [B, H, D, e], finalZ: [B, H, D] };
  const options = { degree, chunkSize: 3 };
  return [
    ["chunkState", { ...kv, ...logG }, states, (x) => ({ ...chunkState(x.k, x.v, { ...options, logG: x.logG }) })],
    [
      "stateScan",
      { ...states, ...logG, s0: final.finalS, z0: final.finalZ },
      { ...states, ...final },
      (x) => {
        const initialState = { s: x.s0, z: x.z0 };
        const out = stateScan({ s: x.s, z: x.z }, { logG: x.logG, chunkSize: 3, initialState });
        return { ...out.entering, finalS: out.finalState.s, finalZ: out.finalState.z };
      },
    ],
    [
      "chunkAttention",
      { ...q, ...kv, ...logG },
      result,
      (x) => ({ ...chunkAttention(x.q, x.k, x.v, { ...options, scale: 0.7, logG: x.logG }) }),
    ],
    [
      "queryState",
      { ...q, ...states, ...logG },
      result,
      (x) => ({ ...queryState(x.q, { s: x.s, z: x.z }, { ...options, scale: -0.7, logG: x.logG }) }),
    ],
  ];
}

const SOFTMAX = {
  inputs: { q: [2, 6, 4, 3], k: [2, 6, 2, 3], v: [2, 6, 2, 5] },
  outputs: { output: [2, 6, 4, 5] },
  run: ((x) => ({ output: softmaxAttention(x.q, x.k, x.v, { scale: 0.6 }) })) as Run,
};

describe("gradients of the low-level operations against central differences", () => {
  for (const degree of [1, 2, 3, 4]) {
    for (const gated of [true, false]) {
      it.each(operations(degree, gated))(`%s, p=${degree}, gated ${gated}`, async (_, inputs, outputs, run) => {
        await checkGradients(draw(inputs, 1), draw(outputs, 2), run, FINITE_DIFFERENCE);
      });
    }
    it(`featureMap, p=${degree}`, async () => {
      const inputs = draw({ x: [2, 2, 3] }, 1);
      const upstream = draw({ phi: [2, 2, expandedDim(3, degree)] }, 2);
      await checkGradients(inputs, upstream, ({ x }) => ({ phi: featureMap(x, degree) }), FINITE_DIFFERENCE);
    });
  }
  it("softmaxAttention", async () => {
    const { inputs, outputs, run } = SOFTMAX;
    await checkGradients(draw(inputs, 1), draw(outputs, 2), run, FINITE_DIFFERENCE);
  });
});

/** Outputs and gradients of a run on a device. */
async function solveOn(kind: DeviceKind, inputs: Arrays, upstream: Arrays, run: Run) {
  const device = await deviceOf(kind);
  const x = place(device, inputs, true);
  const outs = run(x);
  const up = place(device, upstream);
  backwardAll(
    Object.values(outs),
    Object.keys(outs).map((name) => up[name]),
  );
  const found: Record<string, ArrayLike<number>> = {};
  for (const [name, out] of Object.entries(outs)) found[name] = await out.data();
  for (const [name, input] of Object.entries(x)) found[`d${name}`] = await input.grad!.data();
  return found;
}

describeOn(OTHERS, "low-level operations against the oracle, on %s", (kind) => {
  for (const degree of [1, 2, 3, 4]) {
    for (const gated of [true, false]) {
      it.each(operations(degree, gated))(`%s, p=${degree}, gated ${gated}`, async (_, ins, outs, run) => {
        const [inputs, upstream] = [draw(ins, 1), draw(outs, 2)];
        const truth = await solveOn("oracle", inputs, upstream, run);
        expectSame(await solveOn(kind, inputs, upstream, run), truth, (name) =>
          attentionTolerance(kind, "f32", name.startsWith("d") ? "gradient" : "output"),
        );
      });
    }
  }
  it("softmaxAttention", async () => {
    const [inputs, upstream] = [draw(SOFTMAX.inputs, 1), draw(SOFTMAX.outputs, 2)];
    const truth = await solveOn("oracle", inputs, upstream, SOFTMAX.run);
    expectSame(await solveOn(kind, inputs, upstream, SOFTMAX.run), truth, (name) =>
      attentionTolerance(kind, "f32", name.startsWith("d") ? "gradient" : "output"),
    );
  });
});

describeOn(DEVICES, "composition on %s", async (kind) => {
  const device = await deviceOf(kind);
  const problem: Problem = {
    batch: 2,
    time: 11,
    queryHeads: 4,
    heads: 2,
    headDim: 3,
    valueDim: 5,
    degree: 2,
    gated: true,
    initial: true,
    final: true,
  };

  it.each([1, 3, 4, 11])("the four operations, normalised, are powerFull: chunkSize %i", async (chunkSize) => {
    const arrays = randomInputs(problem);
    const tolerance = (name: string) =>
      4 * attentionTolerance(kind, "f32", name.startsWith("d") ? "gradient" : "output");
    const compose: Run = ({ q, k, v, logG, s, z }) => {
      const states = chunkState(k, v, { logG, chunkSize });
      const { entering, finalState } = stateScan(states, { logG, chunkSize, initialState: { s, z } });
      const inside = chunkAttention(q, k, v, { logG, chunkSize });
      const before = queryState(q, entering, { logG, chunkSize });
      const sum = inside.sum.add(before.sum);
      const output = inside.output.add(before.output).div(sum.reshape([...sum.shape, 1]));
      return { output, ...finalState };
    };
    const whole: Run = ({ q, k, v, logG, s, z }) => {
      const out = powerFull(q, k, v, { logG, chunkSize, initialState: { s, z }, returnFinalState: true });
      return { output: out.output, ...out.finalState };
    };
    const results = [];
    for (const run of [compose, whole]) {
      const x = place(device, arrays.inputs, true);
      const up = place(device, arrays.upstream);
      const outs = run(x);
      const found: Record<string, ArrayLike<number>> = {};
      for (const [name, out] of Object.entries(outs)) found[name] = await out.data();
      backwardAll([outs.output, outs.s, outs.z], [up.output, up.s, up.z]);
      for (const [name, input] of Object.entries(x)) found[`d${name}`] = await input.grad!.data();
      results.push(found);
    }
    expectSame(results[0], results[1], tolerance);
  });

  it("φ(q)·φ(k) is (q·k)^p", async () => {
    for (const degree of [1, 2, 3, 4]) {
      const { q, k } = place(device, draw({ q: [5, 6], k: [5, 6] }, degree));
      const features = featureMap(q, degree).mul(featureMap(k, degree)).sum(-1);
      const product = q.mul(k).sum(-1);
      const power = Float64Array.from(await product.data(), (x) => x ** degree);
      expectClose(await features.data(), power, 10 * attentionTolerance(kind, "f32", "output"), `p=${degree}`);
    }
  });
});
