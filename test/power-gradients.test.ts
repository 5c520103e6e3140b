import { describe, it } from "vitest";
import { powerFull } from "../src/power-attention.js";
import type { Tensor } from "../src/tensor/tensor.js";
import { checkGradients, type Problem, randomInputs } from "./attention.js";
import { FINITE_DIFFERENCE } from "./tolerances.js";

const base: Problem = { batch: 1, time: 5, queryHeads: 2, heads: 1, headDim: 3, valueDim: 2, degree: 2, gated: true };

const problems: [string, Problem][] = [
  ["gated, chunked, ragged, states", { ...base, initial: true, final: true, options: { chunkSize: 2 } }],
  ["gated, quadratic, states", { ...base, initial: true, final: true, options: { chunkSize: null } }],
  ["gated, no states", { ...base, options: { chunkSize: null } }],
  ["gated, chunked, no states", { ...base, options: { chunkSize: 2 } }],
  ["ungated, chunked, states", { ...base, gated: false, initial: true, final: true, options: { chunkSize: 3 } }],
  ["one token a chunk", { ...base, initial: true, final: true, options: { chunkSize: 1 } }],
  ["final state alone", { ...base, final: true, options: { chunkSize: 2 } }],
  ["one token", { ...base, time: 1, initial: true, final: true }],
  ["no token", { ...base, time: 0, initial: true, final: true }],
  [
    "batch and heads",
    { ...base, batch: 2, queryHeads: 4, heads: 2, initial: true, final: true, options: { chunkSize: 2 } },
  ],
  ["none", { ...base, initial: true, final: true, options: { chunkSize: 2, normalize: "none" } }],
  [
    "layernorm of an even degree",
    { ...base, valueDim: 4, initial: true, options: { chunkSize: 2, normalize: "layernorm" } },
  ],
  ["p=1, layernorm", { ...base, degree: 1, valueDim: 4, initial: true, final: true, options: { chunkSize: 2 } }],
  ["p=3, layernorm", { ...base, degree: 3, valueDim: 4, initial: true, final: true, options: { chunkSize: 2 } }],
  ["p=4", { ...base, degree: 4, initial: true, final: true, options: { chunkSize: 2, scale: -0.7 } }],
  ["p=6, quadratic", { ...base, degree: 6 }],
  ["p=5, quadratic", { ...base, degree: 5, valueDim: 3, options: { normalize: "none" } }],
  ["layernorm of a single value", { ...base, degree: 1, valueDim: 1 }],
];

describe("gradients of powerFull against central differences", () => {
  it.each(problems)("%s", async (_, problem) => {
    const { inputs, upstream } = randomInputs(problem);
    const { degree, options, final = false } = problem;
    await checkGradients(
      inputs,
      upstream,
      ({ q, k, v, logG, s, z }): Record<string, Tensor> => {
        const initialState = s && { s, z };
        if (!final) return { output: powerFull(q, k, v, { logG, initialState, degree, ...options }) };
        const result = powerFull(q, k, v, { logG, initialState, degree, ...options, returnFinalState: true });
        return { output: result.output, ...result.finalState };
      },
      FINITE_DIFFERENCE,
    );
  });

  it("one tensor as q, k and v", async () => {
    const { inputs, upstream } = randomInputs({ ...base, queryHeads: 2, heads: 2, headDim: 2, valueDim: 2 });
    const { q, logG } = inputs;
    await checkGradients(
      { q, logG },
      upstream,
      (x) => ({ output: powerFull(x.q, x.q, x.q, { logG: x.logG, chunkSize: 2 }) }),
      FINITE_DIFFERENCE,
    );
  });

  it.each(["s", "z"] as const)("from finalState.%s alone", async (part) => {
    const { inputs, upstream } = randomInputs({ ...base, initial: true, final: true });
    await checkGradients(
      inputs,
      upstream,
      ({ q, k, v, logG, s, z }) => {
        const options = { logG, initialState: { s, z }, chunkSize: 2 };
        return { [part]: powerFull(q, k, v, { ...options, returnFinalState: true }).finalState[part] };
      },
      FINITE_DIFFERENCE,
    );
  });
});
