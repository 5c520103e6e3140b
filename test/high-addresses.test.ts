import { expect, it } from "vitest";
import { WasmDevice } from "../src/devices/wasm/device.js";
import {
  chunkState,
  featureMap,
  logSigmoid,
  PowerState,
  powerFull,
  randn,
  softmaxAttention,
  stateScan,
  type TypedArray,
} from "../src/index.js";

/** Outputs and gradients of everything that has a kernel of its own, from the same seeds. */
async function results(device: WasmDevice): Promise<TypedArray[]> {
  const like = { device, seed: 1, requiresGrad: true };
  const [q, k] = [randn([2, 70, 4, 16], like), randn([2, 70, 2, 16], like)];
  const v = randn([2, 70, 2, 24], like);
  const logG = logSigmoid(randn([2, 70, 2], { device, seed: 2, requiresGrad: true }));
  const power = powerFull(q, k, v, { logG, chunkSize: 32 });
  const softmax = softmaxAttention(q, k, v);
  power.mul(softmax).sum().backward();
  const state = PowerState.empty({ device, batch: 2, kvHeads: 2, headDim: 16, valueDim: 24, foldLength: 8 });
  const steps = Array.from({ length: 20 }, (_, t) => {
    const at = (x: typeof q) => x.detach().slice(1, t, t + 1);
    return state.step(at(q), at(k), at(v), { logG: at(logG) });
  });
  const states = stateScan(chunkState(k.detach(), v.detach(), { chunkSize: 16 }), { chunkSize: 16 });
  const all = [
    ...[power, softmax, q.grad!, k.grad!, v.grad!, ...steps, states.finalState.s],
    ...[featureMap(q.detach(), 2), q.matmul(randn([2, 70, 16, 9], like)), q.transpose(1, 2).contiguous()],
    ...[q.to("bf16").to("f32"), q.sum(2), q.exp()],
  ];
  return Promise.all(all.map((tensor) => tensor.data()));
}

it("addresses beyond 2 GiB give the same bits", async () => {
  const low = await WasmDevice.create({ threads: 2 });
  const high = await WasmDevice.create({ threads: 2 });
  // Reserved, never touched: costs no memory.
  for (let n = 0; n < 5; n++) high.allocate("f32", 2 ** 27);
  const [expected, found] = [await results(low), await results(high)];
  for (const [n, values] of found.entries()) expect(values, `result ${n}`).toEqual(expected[n]);
  low.dispose();
  high.dispose();
});
