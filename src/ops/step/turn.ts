import { noGrad } from "../../tensor/tape.js";
import { scope, type Tensor } from "../../tensor/tensor.js";
import { beside } from "../power-attention/views.js";
import { rotary } from "../rotary/index.js";
import type { StepForward, StepInputs } from "./contract.js";

function turn(x: Tensor, angles: Tensor): Tensor {
  const [cos, sin] = [0, 1].map((n) => angles.slice(0, n, n + 1).reshape(angles.shape.slice(1)));
  return rotary(x, cos, sin);
}

/** Queries and keys turned, at once where they lie side by side. */
export function turned<I extends Pick<StepInputs, "q" | "k" | "angles">>({ angles, ...inputs }: I) {
  const { q, k } = inputs;
  if (!angles) return inputs;
  const both = beside(q, k);
  if (!both) return { ...inputs, q: turn(q, angles), k: turn(k, angles) };
  const [turnedQ, turnedK] = turn(both, angles).split([q.shape[2], k.shape[2]], 2);
  return { ...inputs, q: turnedQ, k: turnedK };
}

/** For a device whose kernel takes queries and keys that are turned already. */
export const turning =
  (step: StepForward): StepForward =>
  (plan, carry, inputs) =>
    noGrad(() => scope(() => step(plan, carry, turned(inputs))));
