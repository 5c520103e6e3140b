import { describe, it } from "vitest";
import { expandedDim } from "../src/feature-map.js";
import { featureMap } from "../src/ops/feature-map/index.js";
import { softmaxAttention } from "../src/ops/softmax-attention/index.js";
import { checkGradients, expectClose, expectSame, type Problem, place, randomInputs } from "./attention.js";
import { DEVICES, describeOn, deviceOf, OTHERS } from "./devices.js";
import { composeAndWhole, draw, operations, type Run, solveOn } from "./low-level.js";
import { attentionTolerance, FINITE_DIFFERENCE } from "./tolerances.js";

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

describeOn(OTHERS, "low-level operations against the oracle, on %s", async (kind) => {
  const [oracle, device] = [await deviceOf("oracle"), await deviceOf(kind)];
  for (const degree of [1, 2, 3, 4]) {
    for (const gated of [true, false]) {
      it.each(operations(degree, gated))(`%s, p=${degree}, gated ${gated}`, async (_, ins, outs, run) => {
        const [inputs, upstream] = [draw(ins, 1), draw(outs, 2)];
        const truth = await solveOn(oracle, inputs, upstream, run);
        expectSame(await solveOn(device, inputs, upstream, run), truth, (name) =>
          attentionTolerance(kind, "f32", name.startsWith("d") ? "gradient" : "output"),
        );
      });
    }
  }
  it("softmaxAttention", async () => {
    const [inputs, upstream] = [draw(SOFTMAX.inputs, 1), draw(SOFTMAX.outputs, 2)];
    const truth = await solveOn(oracle, inputs, upstream, SOFTMAX.run);
    expectSame(await solveOn(device, inputs, upstream, SOFTMAX.run), truth, (name) =>
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
    const [parts, whole] = await composeAndWhole(device, arrays, chunkSize);
    expectSame(parts, whole, tolerance);
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
