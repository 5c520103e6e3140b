import { describe, expect, it } from "vitest";
import { expandedDim } from "../src/feature-map.js";
import { featureMap } from "../src/ops/feature-map/index.js";
import { stateScan } from "../src/ops/state-scan/index.js";
import { powerFull } from "../src/power-attention.js";
import { tensor } from "../src/tensor/create.js";
import { DEVICES, describeOn, deviceOf } from "./devices.js";

const Q = [1, 0, 1, 1, 2, -1];
const K = [1, 2, 0, 1, 1, 1];
const V = [1, 0, 0, 1, 2, 3];
const GATES = [0.9, 0.5, 0.25];

function expectValues(actual: ArrayLike<number>, expected: number[], digits: number) {
  expect(actual.length).toBe(expected.length);
  for (const [n, value] of expected.entries()) expect(actual[n]).toBeCloseTo(value, digits);
}

describe("expandedDim", () => {
  it.each([
    [16, 2, 136],
    [32, 2, 528],
    [64, 2, 2080],
    [128, 2, 8256],
    [16, 4, 3876],
    [32, 4, 52360],
    [64, 3, 45760],
    [64, 4, 766480],
    [7, 1, 7],
    [1, 4, 1],
  ])("head dim %i, degree %i: %i", (headDim, degree, D) => expect(expandedDim(headDim, degree)).toBe(D));
});

describeOn(DEVICES, "feature map on %s", (kind) => {
  it("lists sorted monomials with the root of their multiplicities", async () => {
    const device = await deviceOf(kind);
    const digits = kind === "oracle" ? 9 : 5;
    expectValues(await featureMap(tensor([2, 3], [2], { device }), 2).data(), [4, 8.4852813742, 9], digits);
    const cubes = [1, 3.4641016151, 6.9282032303, 8];
    expectValues(await featureMap(tensor([1, 2], [1, 2], { device }), 3).data(), cubes, digits);
  });
});

describeOn(DEVICES, "settled cases on %s", async (kind) => {
  const device = await deviceOf(kind);
  // Gates pass through f32: log(0.9) rounded there moves the seventh digit.
  const digits = kind === "oracle" ? 7 : 5;
  const x = (values: number[]) => tensor(values, [1, 3, 1, 2], { device });
  const [q, k, v] = [x(Q), x(K), x(V)];
  const logG = tensor(GATES.map(Math.log), [1, 3, 1], { device });

  describe.each([null, 1, 2, 3, 8])("chunkSize %s", (chunkSize) => {
    const common = { scale: 1, chunkSize };

    it("p=2, sum, gated", async () => {
      const out = powerFull(q, k, v, { ...common, degree: 2, normalize: "sum", logG });
      expectValues(await out.data(), [1, 0, 0.8181818182, 0.1818181818, 1.6, 2.6], digits);
    });

    it("p=2, sum, ungated", async () => {
      const out = powerFull(q, k, v, { ...common, degree: 2 });
      expectValues(await out.data(), [1, 0, 0.9, 0.1, 1, 2], digits);
    });

    it("p=1, none, gated", async () => {
      const out = powerFull(q, k, v, { ...common, degree: 1, normalize: "none", logG });
      expectValues(await out.data(), [1, 0, 1.5, 1, 2, 2.75], digits);
    });

    it.each([
      [3, 13.5, 1],
      [4, 40.5, 1],
    ])("second row, none, gated, p=%i", async (degree, first, second) => {
      const out = powerFull(q, k, v, { ...common, degree, normalize: "none", logG });
      expectValues((await out.data()).slice(2, 4), [first, second], digits - 1);
    });

    it("final state, p=2", async () => {
      const { finalState } = powerFull(q, k, v, { ...common, degree: 2, logG, returnFinalState: true });
      const s = [2.125, 3, 3.1819805153, 4.2426406871, 2.5, 3.25];
      expectValues(await finalState.s.data(), s, digits);
      expectValues(await finalState.z.data(), [1.125, 1.767766953, 1.75], digits);
    });
  });
});

describeOn(DEVICES, "state scan on %s", (kind) => {
  it("of 1, 2, 3 with gates .9, .5, .25", async () => {
    const device = await deviceOf(kind);
    const digits = kind === "oracle" ? 7 : 5;
    const states = {
      s: tensor([1, 2, 3], [1, 3, 1, 1, 1], { device }),
      z: tensor([1, 2, 3], [1, 3, 1, 1], { device }),
    };
    const logG = tensor(GATES.map(Math.log), [1, 3, 1], { device });
    const { entering, finalState } = stateScan(states, { logG, chunkSize: 1 });
    expectValues(await entering.s.data(), [0, 1, 2.5], digits);
    expectValues(await entering.z.data(), [0, 1, 2.5], digits);
    expectValues(await finalState.s.data(), [3.625], digits);
    expectValues(await finalState.z.data(), [3.625], digits);
  });
});
