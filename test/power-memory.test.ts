import { expect, it } from "vitest";
import { powerFull } from "../src/power-attention.js";
import { Scope } from "../src/tensor/scope.js";
import { noGrad } from "../src/tensor/tape.js";
import { backwardAll, place, randomInputs } from "./attention.js";
import { DEVICES, describeOn, deviceOf } from "./devices.js";

describeOn(DEVICES, "memory on %s", (kind) => {
  it("is flat over a thousand steps, forward and backward", async () => {
    const device = await deviceOf(kind);
    const { inputs, upstream } = randomInputs({
      batch: 1,
      time: 9,
      queryHeads: 2,
      heads: 1,
      headDim: 3,
      valueDim: 3,
      degree: 2,
      gated: true,
      initial: true,
      final: true,
    });
    const x = place(device, inputs, true);
    const up = place(device, upstream);
    const step = (backward: boolean) => {
      using _ = new Scope();
      const { q, k, v, logG, s, z } = x;
      const options = { logG, initialState: { s, z }, chunkSize: 4, returnFinalState: true } as const;
      // A view with a strided innermost axis, so that a copy is made too.
      const strided = () => q.transpose(2, 3).contiguous().transpose(2, 3);
      const view = backward ? strided() : noGrad(strided);
      const run = () => powerFull(view, k, v, options);
      // Without noGrad a graph that no backward walks keeps what it saved until it is garbage.
      const { output, finalState } = backward ? run() : noGrad(run);
      if (backward) backwardAll([output, finalState.s, finalState.z], [up.output, up.s, up.z]);
      for (const input of Object.values(x)) {
        input.grad?.dispose();
        input.grad = null;
      }
    };
    // No await from here on: nothing is collected behind our back.
    for (let n = 0; n < 10; n++) step(n % 4 !== 3);
    const { used } = device.memory();
    for (let n = 0; n < 1000; n++) step(n % 4 !== 3);
    expect(device.memory().used).toBe(used);
  });
});
