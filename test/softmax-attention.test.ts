import { expect, it } from "vitest";
import { softmaxAttention } from "../src/ops/softmax-attention/index.js";
import { tensor } from "../src/tensor/create.js";
import { expectClose, place, randomInputs } from "./attention.js";
import { DEVICES, describeOn, deviceOf } from "./devices.js";
import { attentionTolerance } from "./tolerances.js";

describeOn(DEVICES, "softmaxAttention on %s", async (kind) => {
  const device = await deviceOf(kind);
  const tolerance = 4 * attentionTolerance(kind, "f32", "output");

  it("a worked case: scores ln 1, ln 3 weigh 1/4 and 3/4", async () => {
    const x = (values: number[]) => tensor(values, [1, 2, 1, 1], { device });
    const out = softmaxAttention(x([0, 1]), x([0, Math.log(3)]), x([4, 8]), { scale: 1 });
    expectClose(await out.data(), [4, 7], tolerance + 1e-7, "output");
  });

  it("zero queries average the values so far, per group of heads", async () => {
    const { inputs } = randomInputs({ batch: 1, time: 3, queryHeads: 4, heads: 2, headDim: 2, valueDim: 1, degree: 2 });
    inputs.q.values.fill(0);
    inputs.v.values.set([1, 10, 3, 20, 8, 60]);
    const { q, k, v } = place(device, inputs);
    const expected = [1, 1, 10, 10, 2, 2, 15, 15, 4, 4, 30, 30];
    expectClose(await softmaxAttention(q, k, v).data(), expected, tolerance, "output");
  });

  it("large scores do not overflow, and the future does not leak", async () => {
    const { inputs } = randomInputs({ batch: 1, time: 9, queryHeads: 1, heads: 1, headDim: 4, valueDim: 4, degree: 2 });
    for (const name of ["q", "k"]) inputs[name].values = inputs[name].values.map((x) => 100 * x);
    const before = place(device, inputs);
    const plain = await softmaxAttention(before.q, before.k, before.v).data();
    expect(Array.from(plain).every(Number.isFinite)).toBe(true);
    for (const { values } of Object.values(inputs)) values.fill(Number.NaN, 5 * 4);
    const after = place(device, inputs);
    expect((await softmaxAttention(after.q, after.k, after.v).data()).slice(0, 20)).toEqual(plain.slice(0, 20));
  });
});
