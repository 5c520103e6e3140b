import { expect, test, vi } from "vitest";
import { getDevice } from "../src/devices/get-device.js";
import type { WebGpuDevice } from "../src/devices/webgpu/device.js";
import { GPT, gptConfig } from "../src/models/index.js";
import type { PowerState } from "../src/state.js";
import { Generator } from "../src/tensor/random.js";
import { Scope } from "../src/tensor/scope.js";
import { noGrad } from "../src/tensor/tape.js";
import type { Tensor } from "../src/tensor/tensor.js";
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

describeOnGpu("tokens that are recorded", () => {
  const config = gptConfig("tiny", { ...SHAPE, bias: true });
  const make = () => new GPT(config, { device, dtype: "f16", generator: new Generator(7) });
  /** Logits of ids, read in pieces of these lengths, by a model that sees nothing else. */
  async function alone(ids: readonly number[], pieces: readonly number[], model = make()) {
    const caches = model.caches(1);
    const all: number[][] = [];
    for (let at = 0, n = 0; n < pieces.length; at += pieces[n++]) {
      all.push(await next(model, caches, ids.slice(at, at + pieces[n])));
    }
    for (const cache of caches) cache.dispose();
    model.dispose();
    return all;
  }
  async function next(model: GPT, caches: ReturnType<GPT["caches"]>, ids: readonly number[]): Promise<number[]> {
    using _ = new Scope();
    return [...(await noGrad(() => model.forward(model.ids(ids, [1, ids.length]), { caches, last: true })).data())];
  }
  const draw = (count: number, seed: number) => {
    const generator = new Generator(seed);
    return Array.from({ length: count }, () => generator.integer(config.vocabSize));
  };
  const ones = (count: number) => new Array<number>(count).fill(1);

  test("cost the host what dispatches cost, and nothing else", async () => {
    const model = make();
    const caches = model.caches(1);
    const dispatch = vi.spyOn(device as WebGpuDevice, "dispatch");
    try {
      const counts: number[] = [];
      for (const id of draw(8, 1)) {
        dispatch.mockClear();
        await next(model, caches, [id]);
        counts.push(dispatch.mock.calls.length);
      }
      expect(counts[0]).toBeGreaterThan(10);
      expect(counts.slice(3)).toEqual([0, 0, 0, 0, 0]);
    } finally {
      dispatch.mockRestore();
      for (const cache of caches) cache.dispose();
      model.dispose();
    }
  });

  test("of two texts in turns do not disturb each other, nor what is kept of the token before", async () => {
    const texts = [draw(40, 1), draw(40, 2)];
    const wanted = [await alone(texts[0], ones(40)), await alone(texts[1], ones(40))];
    const model = make();
    const sessions = texts.map(() => model.caches(1));
    const kept: { logits: Tensor; want: number[] }[] = [];
    for (let at = 0; at < 40; at++) {
      for (const [n, caches] of sessions.entries()) {
        const logits = noGrad(() => model.forward(model.ids([texts[n][at]], [1, 1]), { caches, last: true }));
        kept.push({ logits, want: wanted[n][at] });
      }
    }
    for (const { logits, want } of kept) {
      expect([...(await logits.data())]).toEqual(want);
      logits.dispose();
    }
    for (const cache of sessions.flat()) cache.dispose();
    model.dispose();
  });

  test("go on after a piece of many tokens, which makes a new state", async () => {
    const ids = draw(96, 3);
    const pieces = [...ones(10), 40, ...ones(46)];
    const found = await alone(ids, pieces);
    const checked = await getDevice("webgpu", { check: true }); // where nothing is recorded
    const model = new GPT(config, { device: checked, dtype: "f16", generator: new Generator(7) });
    expect(found).toEqual(await alone(ids, pieces, model));
    checked.dispose();
  });

  test("follow weights that are written in place, and a cache that is replaced", async () => {
    const ids = draw(12, 4);
    const model = make();
    const caches = model.caches(1);
    for (const id of ids) await next(model, caches, [id]);
    const other = new GPT(config, { device, dtype: "f16", generator: new Generator(8) });
    model.loadStateDict(await other.stateDict());
    const copies = caches.map((cache) => (cache as PowerState).clone());
    const again = copies.map((copy) => (copy as PowerState).clone());
    const want = await next(other, copies, [5]);
    expect(await next(model, caches, [5])).toEqual(want);
    // The same list of caches, other states in it.
    for (const cache of caches) cache.dispose();
    caches.splice(0, caches.length, ...again);
    expect(await next(model, caches, [5])).toEqual(want);
    for (const cache of [...caches, ...copies]) cache.dispose();
    for (const made of [model, other]) made.dispose();
  });

  test("leave memory flat from token to token and from text to text", async () => {
    // Of its own: what other tests left to the collector would go meanwhile.
    const own = await getDevice("webgpu", {});
    const model = new GPT(config, { device: own, dtype: "f16", generator: new Generator(7) });
    const text = async () => {
      const caches = model.caches(1);
      for (const id of draw(40, 5)) await next(model, caches, [id]);
      const { used } = own.memory();
      for (const cache of caches) cache.dispose();
      return used;
    };
    await text();
    const { used, reserved } = own.memory();
    const during = await text();
    expect(await text()).toBe(during);
    expect(own.memory()).toMatchObject({ used, reserved });
    own.dispose();
  });
});
