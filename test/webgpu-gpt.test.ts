import { expect, test } from "vitest";
import { getDevice } from "../src/devices/get-device.js";
import { GPT, gptConfig } from "../src/models/index.js";
import { Generator } from "../src/tensor/random.js";
import { Scope } from "../src/tensor/scope.js";
import { noGrad } from "../src/tensor/tape.js";
import { describeOnGpu, hasAdapter } from "./devices.js";

const wasm = await getDevice("wasm");
const device = hasAdapter ? await getDevice("webgpu") : wasm;
const SHAPE = { vocabSize: 67, nLayer: 2, nEmbd: 64, nHead: 2, headSize: 32, qheadRatio: 1, contextLength: 64 };

describeOnGpu("a GPT on webgpu", () => {
  // The last tokens one by one, after a prompt that is folded into the state at once; 40 of them fold the tail on the way.
  test.each([
    ["f32", "power", { bias: true }],
    ["f16", "power", { bias: true }],
    ["f16", "power", { qheadRatio: 2, nHead: 1, disableGating: true }],
    ["bf16", "power", { norm: "rms" }],
    ["f16", "softmax", { positions: "learned" }],
  ] as const)(
    "%s, %s attention, %o: writing token by token gives the logits of the whole text",
    async (dtype, attention, rest) => {
      const config = gptConfig("tiny", { ...SHAPE, attention, ...rest });
      const model = new GPT(config, { device, dtype, generator: new Generator(7) });
      const truth = new GPT(config, { device: wasm, generator: new Generator(7) });
      truth.loadStateDict(await model.stateDict());
      const generator = new Generator(2);
      const ids = Array.from({ length: 60 }, () => generator.integer(config.vocabSize));
      const whole = await noGrad(() => truth.forward(truth.ids(ids, [1, 60]))).data();
      const caches = model.caches(1);
      const tolerance = { f32: 1e-4, f16: 4e-3, bf16: 3e-2 }[dtype];
      let top = 0;
      for (const x of whole) top = Math.max(top, Math.abs(x));
      for (let at = 0; at < 60; at += at === 0 ? 20 : 1) {
        using _ = new Scope();
        const part = at === 0 ? ids.slice(0, 20) : [ids[at]];
        const logits = noGrad(() => model.forward(model.ids(part, [1, part.length]), { caches, last: true }));
        expect(logits.dtype).toBe("f32");
        const got = await logits.data();
        const end = at + part.length;
        for (const [k, x] of got.entries()) {
          const want = whole[(end - 1) * config.vocabSize + k];
          expect(Math.abs(x - want) / top, `token ${end - 1}, logit ${k}`).toBeLessThan(tolerance);
        }
      }
      for (const cache of caches) cache.dispose();
      for (const made of [model, truth]) made.dispose();
    },
  );
});
