import { describe, expect, it } from "vitest";
import { getDevice } from "../src/devices/get-device.js";
import { OracleDevice } from "../src/devices/oracle.js";
import { expandedDim } from "../src/feature-map.js";
import { concat } from "../src/ops/copy/index.js";
import { rotary, rotaryAngles } from "../src/ops/rotary/index.js";
import { powerFull } from "../src/power-attention.js";
import { readSafetensors, writeSafetensors } from "../src/safetensors.js";
import { PowerState, type PowerStateOptions } from "../src/state.js";
import { tensor, zeros } from "../src/tensor/create.js";
import { Scope } from "../src/tensor/scope.js";
import { scope, type Tensor } from "../src/tensor/tensor.js";
import { expectClose, type Problem, place, randomInputs } from "./attention.js";
import { DEVICES, describeOn, deviceOf, isHere } from "./devices.js";
import { attentionTolerance } from "./tolerances.js";

const base: Problem = { batch: 2, time: 23, queryHeads: 4, heads: 2, headDim: 4, valueDim: 3, degree: 2, gated: true };

describeOn(DEVICES, "PowerState on %s", async (kind) => {
  const device = await deviceOf(kind);
  const tolerance = 8 * attentionTolerance(kind, "f32", "output");
  const make = (options: Partial<PowerStateOptions> = {}) =>
    PowerState.empty({ device, batch: 2, kvHeads: 2, headDim: 4, valueDim: 3, ...options });

  /** Steps through the sequence by the given numbers of tokens; returns the outputs in order. */
  async function walk(state: PowerState, x: Record<string, Tensor>, sizes: number[], options = {}, from = 0) {
    const time = x.q.shape[1];
    const out = new Float64Array(2 * time * 12);
    let t = from;
    for (const size of sizes) {
      const at = (y: Tensor) => y.slice(1, t, t + size);
      const part = state.step(at(x.q), at(x.k), at(x.v), { logG: x.logG && at(x.logG), ...options });
      expect(part.shape).toEqual([2, size, 4, 3]);
      const values = await part.data();
      for (let b = 0; b < 2; b++) out.set(values.slice(b * size * 12, (b + 1) * size * 12), (b * time + t) * 12);
      t += size;
    }
    expect(state.tokens).toBe(t);
    return out;
  }

  const schedules: [string, number[]][] = [
    ["one by one", new Array(23).fill(1)],
    ["all at once", [23]],
    ["a prompt, then tokens", [15, ...new Array(8).fill(1)]],
    ["several at once", [2, 3, 5, 1, 4, 8]],
    ["none at times", [0, 7, 0, 15, 1, 0]],
    ["tokens, then a long piece", [1, 1, 1, 20]],
  ];

  describe.each([1, 2, 4, 5, 7, 32])("foldLength %i", (foldLength) => {
    it.each(schedules)("%s: outputs are those of the whole sequence", async (_, sizes) => {
      const x = place(device, randomInputs(base).inputs);
      const whole = await powerFull(x.q, x.k, x.v, { logG: x.logG, chunkSize: 4 }).data();
      using state = make({ foldLength });
      expectClose(await walk(state, x, sizes), whole, tolerance, "output");
    });
  });

  it.each([1, 2, 3, 4])("degree %i, every normalisation, gated or not", async (degree) => {
    for (const gated of [true, false]) {
      for (const normalize of degree % 2 ? (["layernorm", "none"] as const) : (["sum", "layernorm", "none"] as const)) {
        const x = place(device, randomInputs({ ...base, degree, gated }).inputs);
        const options = { scale: 0.4, normalize };
        const whole = await powerFull(x.q, x.k, x.v, { logG: x.logG, degree, ...options }).data();
        using state = make({ degree, foldLength: 3 });
        expectClose(await walk(state, x, [4, 1, 1, 1, 2, 3, 1, 10], options), whole, 4 * tolerance, normalize);
      }
    }
  });

  it.each([
    ["apart", 3, 2],
    ["in one tensor", 4, 2],
    ["in one tensor, 8 query heads to a key head", 4, 1],
  ])("turns queries and keys by their angles, rows %s", async (_, valueDim, heads) => {
    const problem = { ...base, queryHeads: heads === 1 ? 8 : 4, heads, valueDim };
    const x = place(device, randomInputs(problem).inputs);
    const turn = (t: Tensor) => {
      const { cos, sin } = rotaryAngles(4, 0, 23);
      return rotary(t, tensor(cos, [23, 2], { device }), tensor(sin, [23, 2], { device }));
    };
    const whole = await powerFull(turn(x.q), turn(x.k), x.v, { logG: x.logG }).data();
    using state = make({ foldLength: 5, kvHeads: heads, valueDim });
    const width = problem.queryHeads * valueDim;
    for (let t = 0; t < 23; ) {
      const size = [1, 3, 1, 7, 4, 1, 2, 2, 1, 1][t % 10];
      const end = Math.min(t + size, 23);
      const at = (y: Tensor) => y.slice(1, t, end);
      const { cos, sin } = rotaryAngles(4, t, end - t);
      const angles = tensor([...cos, ...sin], [2, end - t, 2], { device });
      const given = [at(x.q), at(x.k), at(x.v)];
      const [q, k, v] = valueDim === 3 ? given : concat(given, 2).split([problem.queryHeads, heads, heads], 2);
      const part = await state.step(q, k, v, { logG: at(x.logG), angles }).data();
      const own = [0, 1].flatMap((b) => [...whole.slice((b * 23 + t) * width, (b * 23 + end) * width)]);
      expectClose(Float64Array.from(part), Float64Array.from(own), tolerance, `tokens ${t} to ${end}`);
      t = end;
    }
    const [q, k, v] = [x.q, x.k, x.v].map((y) => y.slice(1, 0, 1));
    const angles = (shape: number[], dtype: "f32" | "f16" = "f32") => ({ angles: zeros(shape, { device, dtype }) });
    expect(() => state.step(q, k, v, angles([2, 2, 2]))).toThrow(
      /PowerState\.step: angles must have shape \[2, t, d\/2\] for an even d, got \[2, 2, 2\] for 1 tokens and d 4/,
    );
    expect(() => state.step(q, k, v, angles([2, 1, 2], "f16"))).toThrow(
      /angles must be f32 on the state's device, got f16/,
    );
    expect(state.tokens).toBe(23);
  });

  it("logG = −Infinity forgets the state and the tail", async () => {
    const { inputs } = randomInputs(base);
    for (const at of [2, 9, 10]) inputs.logG.values.fill(Number.NEGATIVE_INFINITY, at * 2, at * 2 + 2);
    const x = place(device, inputs);
    const whole = await powerFull(x.q, x.k, x.v, { logG: x.logG }).data();
    using state = make({ foldLength: 4 });
    expectClose(await walk(state, x, new Array(23).fill(1)), whole, tolerance, "output");
  });

  it.each(["f16", "bf16"] as const)("takes %s and answers in it", async (dtype) => {
    const x = place(device, randomInputs({ ...base, dtype }).inputs);
    const whole = await powerFull(x.q, x.k, x.v, { logG: x.logG }).data();
    using state = make({ foldLength: 5 });
    expect(state.step(x.q.slice(1, 0, 0), x.k.slice(1, 0, 0), x.v.slice(1, 0, 0)).dtype).toBe(dtype);
    const found = await walk(state, x, new Array(23).fill(1));
    expectClose(found, whole, tolerance + 2 * attentionTolerance(kind, dtype, "output"), "output");
  });

  it("bytes are constant from the first fold on, and nothing leaks", async () => {
    const x = place(device, randomInputs({ ...base, time: 1 }).inputs);
    const state = make({ foldLength: 4 });
    const tail = 4 * 2 * 4 * 2 * (4 + 3 + 1);
    expect(state.bytes).toBe(tail);
    const step = () => scope(() => void state.step(x.q, x.k, x.v, { logG: x.logG }));
    for (let n = 0; n < 5; n++) step();
    const folded = tail + 4 * 2 * 2 * expandedDim(4, 2) * (3 + 1);
    expect(state.bytes).toBe(folded);
    const prompt = () => {
      using _ = new Scope();
      const long = place(device, randomInputs({ ...base, time: 40 }).inputs);
      state.step(long.q, long.k, long.v, { logG: long.logG });
    };
    prompt(); // what a device compiles at the first call counts as used
    step();
    const { used } = device.memory();
    for (let n = 0; n < 1000; n++) step();
    expect(state.bytes).toBe(folded);
    expect(state.tokens).toBe(1046);
    expect(device.memory().used).toBe(used);
    prompt();
    expect(state.bytes).toBe(folded);
    expect(device.memory().used).toBe(used);
    state.dispose();
    state.dispose();
    expect(device.memory().used).toBeLessThanOrEqual(used - folded);
    expect(() => state.step(x.q, x.k, x.v)).toThrow(/PowerState.step: the state must not have been disposed/);
  });

  it("outlives the scope it was made and stepped in", async () => {
    const x = place(device, randomInputs(base).inputs);
    const whole = await powerFull(x.q, x.k, x.v, { logG: x.logG }).data();
    const state = scope(() => {
      const made = make({ foldLength: 3 });
      for (let t = 0; t < 8; t++) {
        const at = (y: Tensor) => y.slice(1, t, t + 1);
        made.step(at(x.q), at(x.k), at(x.v), { logG: at(x.logG) });
      }
      return { made };
    }).made;
    const rest = await walk(state, x, [15], {}, 8);
    expectClose(rest.slice(8 * 12, 23 * 12), whole.slice(8 * 12, 23 * 12), tolerance, "output");
    state.dispose();
  });

  it("records no gradient", () => {
    const q = zeros([2, 1, 4, 4], { device, requiresGrad: true });
    const k = zeros([2, 1, 2, 4], { device });
    using state = make();
    expect(state.step(q, k, zeros([2, 1, 2, 3], { device })).requiresGrad).toBe(false);
  });

  it("clone goes on independently", async () => {
    const x = place(device, randomInputs(base).inputs);
    const whole = await powerFull(x.q, x.k, x.v, { logG: x.logG }).data();
    for (const at of [2, 9]) {
      using state = make({ foldLength: 4 });
      await walk(state, x, new Array(at).fill(1));
      using copy = state.clone();
      expect([copy.tokens, copy.bytes]).toEqual([state.tokens, state.bytes]);
      const noise = place(device, randomInputs({ ...base, seed: 9 }).inputs);
      await walk(state, noise, [1, 1, 1, 1, 1, 1], {}, at);
      const rest = await walk(copy, x, new Array(23 - at).fill(1), {}, at);
      for (const b of [0, 1]) {
        const [from, to] = [(b * 23 + at) * 12, (b + 1) * 23 * 12];
        expectClose(rest.slice(from, to), whole.slice(from, to), tolerance, `after ${at}`);
      }
    }
  });

  describe("saving", () => {
    const saved = async (tokens: number, foldLength = 4) => {
      const x = place(device, randomInputs(base).inputs);
      const state = make({ foldLength });
      await walk(state, x, new Array(tokens).fill(1));
      return { x, state, bytes: await state.toSafetensorsAsync() };
    };

    it.each([0, 1, 4, 5, 9])("after %i tokens: loads on every device and goes on as before", async (tokens) => {
      const { x, state, bytes } = await saved(tokens);
      if (device.readNow) expect(state.toSafetensors()).toEqual(bytes);
      else expect(() => state.toSafetensors()).toThrow(/must read at once, got webgpu; use await toSafetensorsAsync/);
      expect(await state.clone().toSafetensorsAsync()).toEqual(bytes);
      const whole = await powerFull(x.q, x.k, x.v, { logG: x.logG }).data();
      for (const other of DEVICES.filter(isHere)) {
        const there = await getDevice(other);
        using loaded = PowerState.fromSafetensors(bytes, { device: there });
        expect(loaded.device).toBe(there);
        expect([loaded.tokens, loaded.bytes, loaded.degree, loaded.foldLength]).toEqual([tokens, state.bytes, 2, 4]);
        expect(await loaded.toSafetensorsAsync()).toEqual(bytes);
        const onThere = place(there, randomInputs(base).inputs);
        const rest = await walk(loaded, onThere, new Array(23 - tokens).fill(1), {}, tokens);
        for (const b of [0, 1]) {
          const [from, to] = [(b * 23 + tokens) * 12, (b + 1) * 23 * 12];
          expectClose(rest.slice(from, to), whole.slice(from, to), tolerance + 4e-7, `on ${other}`);
        }
      }
    });

    const damage: [string, (file: ReturnType<typeof readSafetensors>) => void, RegExp][] = [
      [
        "another format",
        (f) => (f.metadata.format = "weights"),
        /must be a power-attention state, got format "weights"; load/,
      ],
      ["no metadata", (f) => (f.metadata = {}), /got format undefined/],
      ["version", (f) => (f.metadata.version = "2"), /must have version 1, got "2"; use the version/],
      ["degree", (f) => (f.metadata.degree = "3"), /s must have shape \[2, 2, 20, 3\], got \[2, 2, 10, 3\]/],
      ["degree 5", (f) => (f.metadata.degree = "5"), /needs a degree from 1 to 4, got degree 5/],
      ["batch not a number", (f) => (f.metadata.batch = "two"), /batch must be a number, got "two"/],
      ["headDim", (f) => (f.metadata.headDim = "300"), /headDim must be from 1 to 256, got 300/],
      ["tokens", (f) => (f.metadata.tokens = "0"), /tokens must agree with the tail of 1 and the state, got 0/],
      ["fold length", (f) => (f.metadata.foldLength = "0"), /foldLength must be a positive integer, got 0/],
      ["z missing", (f) => delete f.tensors.z, /z must be in the file, got only/],
      ["k missing", (f) => delete f.tensors.k, /k must be in the file/],
      ["an extra tensor", (f) => (f.tensors.w = f.tensors.z), /got also w/],
      ["dtype", (f) => (f.tensors.z = { ...f.tensors.z, dtype: "I32" }), /z must have dtype F32, got I32/],
      [
        "shape",
        (f) => (f.tensors.logG = { ...f.tensors.logG, shape: [2, 2, 1] }),
        /logG must have shape \[2, 1, 2\], got \[2, 2, 1\]/,
      ],
    ];

    it.each(damage)("refuses a file with a wrong %s", async (_, change, message) => {
      const { bytes } = await saved(9);
      const file = readSafetensors(bytes);
      change(file);
      const before = device.memory().used;
      expect(() => PowerState.fromSafetensors(writeSafetensors(file), { device })).toThrow(message);
      expect(device.memory().used).toBe(before);
    });

    it("refuses a truncated file, wherever it is cut", async () => {
      const { bytes } = await saved(5);
      for (const length of [0, 7, 8, 100, bytes.length - 1]) {
        expect(() => PowerState.fromSafetensors(bytes.slice(0, length), { device })).toThrow(
          /readSafetensors: .*corrupt/,
        );
      }
    });
  });

  describe("invalid use", () => {
    const x = (shape: number[]) => zeros(shape, { device });
    const tokens = { q: x([2, 1, 4, 4]), k: x([2, 1, 2, 4]), v: x([2, 1, 2, 3]) };
    const step = (change: Partial<typeof tokens>, options = {}) => {
      const { q, k, v } = { ...tokens, ...change };
      using state = make();
      return state.step(q, k, v, options);
    };
    const bad: [string, () => unknown, RegExp][] = [
      [
        "batch",
        () => step({ q: x([1, 1, 4, 4]), k: x([1, 1, 2, 4]), v: x([1, 1, 2, 3]) }),
        /batch must be the state's 2, got 1/,
      ],
      ["heads", () => step({ k: x([2, 1, 4, 4]), v: x([2, 1, 4, 3]) }), /key heads must be the state's 2, got 4/],
      ["head dim", () => step({ q: x([2, 1, 4, 5]), k: x([2, 1, 2, 5]) }), /head dim must be the state's 4, got 5/],
      ["value dim", () => step({ v: x([2, 1, 2, 4]) }), /value dim must be the state's 3, got 4/],
      ["degree", () => step({}, { degree: 3 }), /degree must be the state's, got 3 for a state of degree 2/],
      ["option", () => step({}, { chunkSize: 3 }), /options are logG, scale, normalize.*got "chunkSize"/],
      [
        "gates",
        () => step({}, { logG: tensor([0, 0, 0, 1], [2, 1, 2], { device }) }),
        /PowerState.step: logG must hold logs of gates/,
      ],
      ["gates' shape", () => step({}, { logG: x([2, 1, 4]) }), /PowerState.step: logG must have shape \[2, 1, 2\]/],
      ["normalize", () => step({}, { normalize: "mean" }), /PowerState.step: normalize must be/],
      ["not tensors", () => step({ q: 3 as unknown as Tensor }), /PowerState.step: q must be a Tensor/],
      [
        "no device",
        () => PowerState.empty({ batch: 1, kvHeads: 1, headDim: 4 } as PowerStateOptions),
        /PowerState.empty: device must be a Device, got undefined/,
      ],
      ["kvHeads 0", () => make({ kvHeads: 0 }), /kvHeads must be a positive integer, got 0/],
      ["batch 1.5", () => make({ batch: 1.5 }), /batch must be a positive integer, got 1.5/],
      ["degree 5", () => make({ degree: 5 }), /PowerState.empty: a state needs a degree from 1 to 4, got degree 5/],
      ["headDim 257", () => make({ headDim: 257 }), /headDim must be from 1 to 256, got 257/],
      ["foldLength 0", () => make({ foldLength: 0 }), /foldLength must be a positive integer, got 0/],
      [
        "too large",
        () => make({ headDim: 128, valueDim: 128, degree: 4 }),
        /a state must fit the device's .*; use a lower degree/,
      ],
      ["option of empty", () => make({ heads: 2 } as object), /PowerState.empty: options are device, .*, got "heads"/],
    ];
    // Gates above 1 are only found where reading is synchronous.
    const found = bad.filter(([name]) => device.readNow || name !== "gates");
    it.each(found)("%s", (_, call, message) => expect(call).toThrow(message));

    it("tensors of another device", () => {
      const other = new OracleDevice();
      const on = (shape: number[]) => zeros(shape, { device: other });
      using state = make();
      expect(() => state.step(on([2, 1, 4, 4]), on([2, 1, 2, 4]), on([2, 1, 2, 3]))).toThrow(
        /tensors must be on the state's device, got oracle/,
      );
    });

    it("leaves the state as it was", async () => {
      const y = place(device, randomInputs(base).inputs);
      using state = make({ foldLength: 4 });
      await walk(state, y, new Array(9).fill(1));
      const before = await state.toSafetensorsAsync();
      expect(() => state.step(tokens.q, tokens.k, y.v)).toThrow();
      expect(await state.toSafetensorsAsync()).toEqual(before);
    });
  });
});
