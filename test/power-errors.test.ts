import { describe, expect, it } from "vitest";
import { getDevice } from "../src/devices/get-device.js";
import { OracleDevice } from "../src/devices/oracle.js";
import { chunkAttention } from "../src/ops/chunk-attention/index.js";
import { chunkState } from "../src/ops/chunk-state/index.js";
import { crossEntropy } from "../src/ops/cross-entropy/index.js";
import { embedding } from "../src/ops/embedding/index.js";
import { featureMap } from "../src/ops/feature-map/index.js";
import { gateCheck } from "../src/ops/gate-check/index.js";
import { queryState } from "../src/ops/query-state/index.js";
import { softmaxAttention } from "../src/ops/softmax-attention/index.js";
import { stateScan } from "../src/ops/state-scan/index.js";
import { chooseChunkSize, DEFAULT_CHUNK_SIZE, type PowerOptions } from "../src/options.js";
import { powerAttention, powerFull } from "../src/power-attention.js";
import { randn, tensor, zeros } from "../src/tensor/create.js";
import type { DType } from "../src/tensor/dtype.js";
import type { Tensor } from "../src/tensor/tensor.js";
import { DEVICES, describeOn } from "./devices.js";

const device = await getDevice("oracle");
const x = (shape: number[], dtype: DType = "f32") => zeros(shape, { device, dtype });
const good = { q: x([2, 5, 4, 3]), k: x([2, 5, 2, 3]), v: x([2, 5, 2, 6]) };
const run = (change: { q?: unknown; k?: unknown; v?: unknown }, options?: unknown) => {
  const { q, k, v } = { ...good, ...change } as typeof good;
  return powerFull(q, k, v, options as PowerOptions);
};
const gates = (value: number) => tensor(new Array(20).fill(value), [2, 5, 2], { device });
const state = (D: number, e = 6) => ({ s: x([2, 2, D, e]), z: x([2, 2, D]) });

/** What is wrong, the call, and the error: its class and a message that names rule, value and way out. */
const bad: [string, () => unknown, typeof RangeError | typeof TypeError, RegExp][] = [
  ["q not a tensor", () => run({ q: [1, 2] }), TypeError, /q must be a Tensor, got an array of 2; make one with/],
  ["v missing", () => run({ v: undefined }), TypeError, /v must be a Tensor, got undefined; make/],
  [
    "rank",
    () => run({ k: x([2, 5, 6]) }),
    RangeError,
    /k must have shape \[batch, time, heads, headDim\], got \[2, 5, 6\]; reshape/,
  ],
  [
    "dtypes differ",
    () => run({ k: x([2, 5, 2, 3], "bf16") }),
    TypeError,
    /share one float dtype, got f32, bf16, f32; convert/,
  ],
  [
    "i32",
    () => run({ q: x([2, 5, 4, 3], "i32"), k: x([2, 5, 2, 3], "i32"), v: x([2, 5, 2, 6], "i32") }),
    TypeError,
    /one float dtype, got i32, i32, i32; convert/,
  ],
  [
    "batches differ",
    () => run({ k: x([3, 5, 2, 3]) }),
    RangeError,
    /q and k must agree in batch and time, got \[2, 5, 4, 3\] and \[3, 5, 2, 3\]; slice/,
  ],
  ["times differ", () => run({ v: x([2, 4, 2, 6]) }), RangeError, /q and v must agree in batch and time/],
  [
    "head dims of q and k",
    () => run({ k: x([2, 5, 2, 4]) }),
    RangeError,
    /q and k must have the same head dim, got 3 and 4; only v's/,
  ],
  [
    "heads of k and v",
    () => run({ v: x([2, 5, 4, 6]) }),
    RangeError,
    /k and v must have the same number of heads, got 2 and 4; only q/,
  ],
  [
    "Hq not a multiple",
    () => run({ q: x([2, 5, 6, 3]), k: x([2, 5, 4, 3]), v: x([2, 5, 4, 6]) }),
    RangeError,
    /powerFull: query heads must be a multiple of key heads, got 6 and 4; /,
  ],
  [
    "no heads",
    () => run({ k: x([2, 5, 0, 3]) }),
    RangeError,
    /k must have at least one head, got \[2, 5, 0, 3\]; reshape/,
  ],
  [
    "head dim 257",
    () => run({ q: x([2, 5, 2, 257]) }),
    RangeError,
    /headDim must be from 1 to 256, got 257 .*; use more, smaller heads/,
  ],
  ["value dim 0", () => run({ v: x([2, 5, 2, 0]) }), RangeError, /valueDim must be from 1 to 256, got 0/],
  ["options null", () => run({}, null), TypeError, /options must be an object, got null; leave it out/],
  [
    "unknown option",
    () => run({}, { chunk_size: 4 }),
    TypeError,
    /options are logG, .*, got "chunk_size"; correct or remove/,
  ],
  ["logG not a tensor", () => run({}, { logG: 0.5 }), TypeError, /logG must be a Tensor, got 0.5; make/],
  [
    "logG shape",
    () => run({}, { logG: x([2, 5, 4]) }),
    RangeError,
    /logG must have shape \[2, 5, 2\] \(batch, time, key heads\), got \[2, 5, 4\]; reshape/,
  ],
  [
    "logG dtype",
    () => run({}, { logG: x([2, 5, 2], "bf16") }),
    TypeError,
    /logG must be f32, got bf16; convert it with to\("f32"\)/,
  ],
  [
    "logG above 0",
    () => run({}, { logG: gates(0.25) }),
    RangeError,
    /logG must hold logs of gates in \(0, 1\], so at most 0, got 0.25 at \[0, 0, 0\]; pass logSigmoid/,
  ],
  [
    "sum with odd degree",
    () => run({}, { degree: 3, normalize: "sum" }),
    RangeError,
    /normalize "sum" needs an even degree .*, got degree 3; use "layernorm" or "none"/,
  ],
  [
    "normalize",
    () => run({}, { normalize: "softmax" }),
    RangeError,
    /normalize must be "sum", "layernorm" or "none", got "softmax"; leave/,
  ],
  ["degree 0", () => run({}, { degree: 0 }), RangeError, /degree must be a positive integer, got 0; use/],
  ["degree 2.5", () => run({}, { degree: 2.5 }), RangeError, /degree must be a positive integer, got 2.5; use/],
  ["degree text", () => run({}, { degree: "2" }), RangeError, /degree must be a positive integer, got "2"; use/],
  ["chunkSize 0", () => run({}, { chunkSize: 0 }), RangeError, /chunkSize must be a positive integer, got 0; use null/],
  ["chunkSize −1", () => run({}, { chunkSize: -1 }), RangeError, /chunkSize must be a positive integer, got -1/],
  ["chunkSize 1.5", () => run({}, { chunkSize: 1.5 }), RangeError, /chunkSize must be a positive integer, got 1.5/],
  [
    "chunkSize of degree 5",
    () => run({}, { degree: 5, chunkSize: 4 }),
    RangeError,
    /the chunked form needs a degree from 1 to 4, got degree 5; use chunkSize: null/,
  ],
  [
    "final state of degree 6",
    () => run({}, { degree: 6, returnFinalState: true }),
    RangeError,
    /returnFinalState needs a degree from 1 to 4, got degree 6; run/,
  ],
  [
    "initial state of degree 5",
    () => run({}, { degree: 5, initialState: state(6) }),
    RangeError,
    /initialState needs a degree from 1 to 4, got degree 5/,
  ],
  [
    "scale NaN",
    () => run({}, { scale: Number.NaN }),
    RangeError,
    /scale must be a finite number, got NaN; leave it out/,
  ],
  [
    "returnFinalState",
    () => run({}, { returnFinalState: 1 }),
    TypeError,
    /returnFinalState must be a boolean, got 1; pass/,
  ],
  [
    "state not a state",
    () => run({}, { initialState: good.q }),
    TypeError,
    /initialState must be \{ s, z \}, got Tensor.*; pass a finalState/,
  ],
  [
    "state without z",
    () => run({}, { initialState: { s: state(6).s } }),
    TypeError,
    /initialState.z must be a Tensor, got undefined/,
  ],
  [
    "state of another degree",
    () => run({}, { initialState: state(10) }),
    RangeError,
    /initialState must be of degree 2, got one of degree 3 .*; pass degree: 3/,
  ],
  [
    "state of another shape",
    () => run({}, { initialState: state(6, 5) }),
    RangeError,
    /initialState.s must have shape \[2, 2, 6, 6\] .*degree 2 and head dim 3.*, got \[2, 2, 6, 5\]/,
  ],
  [
    "z of another shape",
    () => run({}, { initialState: { s: state(6).s, z: x([2, 2, 10]) } }),
    RangeError,
    /initialState.z must have shape \[2, 2, 6\]/,
  ],
  [
    "state in f16",
    () => run({}, { initialState: { s: x([2, 2, 6, 6], "f16"), z: x([2, 2, 6]) } }),
    TypeError,
    /initialState.s must be f32, got f16; convert/,
  ],
  [
    "another device",
    () => run({ k: zeros([2, 5, 2, 3], { device: new OracleDevice() }) }),
    TypeError,
    /all tensors must be on one device, got two oracle devices; copy one with await k.copyTo\(device\)/,
  ],
  [
    "state too large",
    () => powerFull(x([1, 600, 1, 128]), x([1, 600, 1, 128]), x([1, 600, 1, 128]), { degree: 4, chunkSize: 4 }),
    RangeError,
    /a state must fit the device's 4.00 GiB, got 5.63 GiB .*expandedDim 11716640.*; use chunkSize: null/,
  ],
  [
    "final state too large",
    () => powerFull(x([1, 6, 1, 128]), x([1, 6, 1, 128]), x([1, 6, 1, 128]), { degree: 4, returnFinalState: true }),
    RangeError,
    /a state must fit .*; use a lower degree, a smaller head dim or a smaller batch/,
  ],

  [
    "chunkState degree",
    () => chunkState(good.k, good.v, { degree: 5, chunkSize: 2 }),
    RangeError,
    /chunkState: a state needs a degree from 1 to 4, got degree 5; lower/,
  ],
  [
    "chunkState chunkSize",
    () => chunkState(good.k, good.v, {} as { chunkSize: number }),
    RangeError,
    /chunkState: chunkSize must be a positive integer, got undefined; pass/,
  ],
  [
    "chunkState heads",
    () => chunkState(good.k, x([2, 5, 3, 6]), { chunkSize: 2 }),
    RangeError,
    /chunkState: k and v must have the same number of heads/,
  ],
  [
    "chunkState gates",
    () => chunkState(good.k, good.v, { chunkSize: 2, logG: gates(1) }),
    RangeError,
    /chunkState: logG must hold logs/,
  ],
  [
    "stateScan states",
    () => stateScan(good.q as unknown as { s: Tensor; z: Tensor }),
    TypeError,
    /stateScan: states must be \{ s, z \}/,
  ],
  [
    "stateScan rank",
    () => stateScan(state(6)),
    RangeError,
    /stateScan: states.s must have shape \[batch, chunks, heads, expandedDim, valueDim\], got \[2, 2, 6, 6\]/,
  ],
  [
    "stateScan chunks",
    () => stateScan({ s: x([2, 4, 2, 6, 6]), z: x([2, 4, 2, 6]) }, { logG: gates(0), chunkSize: 2 }),
    RangeError,
    /stateScan: states must have ceil\(time \/ chunkSize\) chunks, got 4 for time 5 and chunkSize 2; pass/,
  ],
  [
    "stateScan initial",
    () => stateScan({ s: x([2, 4, 2, 6, 6]), z: x([2, 4, 2, 6]) }, { initialState: state(7) }),
    RangeError,
    /stateScan: initialState.s must have shape \[2, 2, 6, 6\]/,
  ],
  [
    "chunkAttention heads",
    () => chunkAttention(x([2, 5, 3, 3]), good.k, good.v),
    RangeError,
    /chunkAttention: query heads must be a multiple of key heads, got 3 and 2/,
  ],
  [
    "queryState states",
    () => queryState(good.q, { s: x([2, 2, 2, 6, 6]), z: x([2, 2, 2, 6]) }, { chunkSize: 2 }),
    RangeError,
    /queryState: states.s must have shape \[2, 3, 2, 6, 6\]/,
  ],
  [
    "softmax option",
    () => softmaxAttention(good.q, good.k, good.v, { degree: 2 } as object),
    TypeError,
    /softmaxAttention: options are scale, got "degree"/,
  ],
  [
    "featureMap degree",
    () => featureMap(good.q, 0),
    RangeError,
    /featureMap: degree must be a positive integer, got 0/,
  ],
  ["featureMap dtype", () => featureMap(x([2], "i32"), 2), TypeError, /featureMap: x must have a float dtype, got i32/],
  [
    "featureMap scalar",
    () => featureMap(x([]), 2),
    RangeError,
    /featureMap: x must have shape \[..., headDim\], got \[\]/,
  ],
  [
    "featureMap too large",
    () => featureMap(x([9, 256]), 4),
    RangeError,
    /featureMap: the features must fit .*lower the degree/,
  ],
];

describe("bad input", () => {
  it.each(bad)("%s", (_, call, kind, message) => {
    let error: unknown;
    try {
      call();
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(kind);
    expect((error as Error).message).toMatch(message);
    expect((error as Error).message, "names function, rule and way out").toMatch(/^\w+: .+; .+/);
  });

  it("takes no memory", () => {
    const own = new OracleDevice();
    const q = zeros([1, 2, 1, 2], { device: own });
    const before = own.memory().used;
    expect(() => powerFull(q, q, q, { degree: -1 })).toThrow(RangeError);
    expect(own.memory().used).toBe(before);
  });
});

describeOn(DEVICES, "gate check on %s", (kind) => {
  // Where reading is asynchronous it is only done in check mode, and the error comes with the next read or sync.
  it("finds the first value above 0, in a view too", async () => {
    const own = await getDevice(kind, { check: true });
    const values = [0, -1, Number.NaN, Number.NEGATIVE_INFINITY, 2 ** -20, 3];
    const logG = tensor(values, [6], { device: own });
    const found = async (view: Tensor) => {
      try {
        gateCheck(own, view, (at, value) => new RangeError(`${value} at ${at}`));
        await own.sync();
      } catch (error) {
        return String(error);
      }
    };
    expect(await found(logG)).toBe(`RangeError: ${2 ** -20} at 4`);
    expect(await found(logG.slice(0, 5, 6))).toBe("RangeError: 3 at 0");
    expect(await found(logG.slice(0, 0, 4))).toBe(undefined);
    expect(await found(logG.slice(0, 0, 0))).toBe(undefined);
    const many = new Float32Array(1000).fill(-1).fill(1, 700);
    expect(await found(tensor(many, [1000], { device: own }))).toBe("RangeError: 1 at 700");
    own.dispose();
  });
});

describeOn(DEVICES, "check mode on %s", (kind) => {
  it("names powerFull where it produced a NaN", async () => {
    const own = await getDevice(kind, { check: true });
    const q = tensor([1, Number.NaN], [1, 2, 1, 1], { device: own });
    // At once, or where reading is asynchronous at the next read.
    const run = async () => powerFull(q, q, q).data();
    await expect(run()).rejects.toThrow(/^powerFull: produced a NaN/);
    own.dispose();
  });

  it("refuses gates above 1, naming the function and the place", async () => {
    const own = await getDevice(kind, { check: true });
    const q = randn([2, 5, 3, 4], { device: own, seed: 1 });
    const logG = tensor(
      Array.from({ length: 30 }, (_, k) => (k === 17 ? 0.5 : -1)),
      [2, 5, 3],
      { device: own },
    );
    const refused =
      /^[a-zA-Z.]+: logG must hold logs of gates in \(0, 1\], so at most 0, got 0.5 at \[1, 0, 2\]; pass logS/;
    await expect((async () => powerFull(q, q, q, { logG }).data())()).rejects.toThrow(refused);
    await expect((async () => chunkState(q, q, { logG, degree: 2, chunkSize: 5 }).s.data())()).rejects.toThrow(refused);
    // The device goes on, and what came before the fault is reported first.
    expect((await powerFull(q, q, q).data()).every(Number.isFinite)).toBe(true);
    own.dispose();
  });

  it("refuses ids and targets out of range", async () => {
    const own = await getDevice(kind, { check: true });
    const weight = tensor([1, 2, 3, 4, 5, 6], [3, 2], { device: own });
    const ids = (...values: number[]) => tensor(values, [values.length], { device: own, dtype: "i32" });
    const look = async (...values: number[]) => embedding(weight, ids(...values)).data();
    expect([...(await look(2, 0))]).toEqual([5, 6, 1, 2]);
    await expect(look(0, 2, 3, 7)).rejects.toThrow(
      "embedding: ids must be from 0 to 2, got 3 at 2; check the tokenizer",
    );
    await expect(look(-1)).rejects.toThrow("embedding: ids must be from 0 to 2, got -1 at 0");
    const lose = async (...values: number[]) => crossEntropy(weight, ids(...values)).data();
    expect(await lose(1, -1, 0)).toHaveLength(1);
    await expect(lose(1, 0, 2)).rejects.toThrow("crossEntropy: targets must be from 0 to 1, or -1, got 2 at 2");
    await expect(lose(-2, 0, 0)).rejects.toThrow("crossEntropy: targets must be from 0 to 1, or -1, got -2 at 0");
    own.dispose();
  });
});

describe("what is allowed", () => {
  it("NaN in logG is the caller's", () => expect(() => run({}, { logG: gates(Number.NaN) })).not.toThrow());
  it("empty time", async () => {
    const q = x([2, 0, 4, 3]);
    const out = powerFull(q, x([2, 0, 2, 3]), x([2, 0, 2, 6]), { returnFinalState: true, initialState: state(6) });
    expect(out.output.shape).toEqual([2, 0, 4, 6]);
    expect(out.finalState.s.shape).toEqual([2, 2, 6, 6]);
  });
  it("powerAttention is powerFull", () => expect(powerAttention).toBe(powerFull));
  it("the largest head dim", () => {
    const q = randn([1, 3, 1, 256], { device, seed: 3 });
    expect(powerFull(q, q, q).shape).toEqual([1, 3, 1, 256]);
  });
});

describe("the choice of form by cost", () => {
  const dims = { queryHeads: 8, heads: 8, headDim: 64, valueDim: 64, degree: 2 };
  it("short sequences take the quadratic form", () => {
    expect(chooseChunkSize({ ...dims, time: 100 })).toBe(null);
    expect(chooseChunkSize({ ...dims, time: 2000 })).toBe(null);
  });
  it("long ones take chunks", () => expect(chooseChunkSize({ ...dims, time: 100_000 })).toBe(DEFAULT_CHUNK_SIZE));
  it("grouped heads share the cost of the state", () => {
    const time = 3500;
    expect(chooseChunkSize({ ...dims, time })).toBe(null);
    expect(chooseChunkSize({ ...dims, heads: 1, time })).toBe(DEFAULT_CHUNK_SIZE);
  });
  it("degrees above 4 only have the quadratic form", () => {
    expect(chooseChunkSize({ ...dims, degree: 5, time: 1e9 })).toBe(null);
  });
});
