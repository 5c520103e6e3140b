import { describe, expect, it } from "vitest";
import type { Device } from "../src/devices/device.js";
import { getDevice } from "../src/devices/get-device.js";
import type { PowerOptions } from "../src/options.js";
import { powerFull } from "../src/power-attention.js";
import { tensor } from "../src/tensor/create.js";
import type { Tensor } from "../src/tensor/tensor.js";
import {
  type Arrays,
  backwardAll,
  expectClose,
  expectSame,
  type Problem,
  place,
  randomInputs,
  solve,
} from "./attention.js";
import { DEVICES, describeOn, deviceOf } from "./devices.js";
import { attentionTolerance, degreeAllowance } from "./tolerances.js";

const base: Problem = { batch: 2, time: 11, queryHeads: 4, heads: 2, headDim: 4, valueDim: 3, degree: 2, gated: true };

describeOn(DEVICES, "laws of powerFull on %s", async (kind) => {
  const device = await deviceOf(kind);
  const tolerance = (name: string) => 4 * attentionTolerance(kind, "f32", name.startsWith("d") ? "gradient" : "output");
  const run = async (arrays: Arrays, options: PowerOptions, on: Device = device) => {
    const { q, k, v, logG, s, z } = place(on, arrays);
    return powerFull(q, k, v, { logG, initialState: s && { s, z }, ...options } as PowerOptions & {
      returnFinalState: false;
    });
  };

  describe.each([1, 2, 3, 4])("p=%i", (degree) => {
    const allowed = (name: string) => degreeAllowance(degree) * tolerance(name);
    it("quadratic = chunked, with states and all gradients", async () => {
      const problem: Problem = { ...base, degree, initial: true, final: true };
      const arrays = randomInputs(problem);
      const whole = await solve(device, { ...problem, options: { chunkSize: null } }, arrays);
      for (const chunkSize of [1, 2, 4, 10, 11, 12, 64]) {
        expectSame(await solve(device, { ...problem, options: { chunkSize } }, arrays), whole, allowed);
      }
    });

    it("token by token through the state", async () => {
      const { inputs } = randomInputs({ ...base, degree });
      const { q, k, v, logG } = place(device, inputs);
      const whole = await powerFull(q, k, v, { logG, degree, chunkSize: 4 }).data();
      const width = whole.length / base.batch / base.time;
      let state: PowerOptions["initialState"];
      for (let t = 0; t < base.time; t++) {
        const at = (x: Tensor) => x.slice(1, t, t + 1);
        const { output, finalState } = powerFull(at(q), at(k), at(v), {
          logG: at(logG),
          degree,
          initialState: state,
          returnFinalState: true,
        });
        const token = await output.data();
        for (let b = 0; b < base.batch; b++) {
          const from = (b * base.time + t) * width;
          const part = token.slice(b * width, (b + 1) * width);
          expectClose(part, whole.slice(from, from + width), 10 * allowed("output"), `token ${t} of ${b}`);
        }
        state = finalState;
      }
    });

    it.each([0, 1, 4, 7, 11])("split at %i: run(0..m) → state → run(m..T), gradients through the state", async (m) => {
      const problem: Problem = { ...base, degree, initial: true, final: true, options: { chunkSize: 3 } };
      const arrays = randomInputs(problem);
      const whole = await solve(device, problem, arrays);
      const x = place(device, arrays.inputs, true);
      const up = place(device, arrays.upstream);
      const part = (a: number, b: number, state: PowerOptions["initialState"]) =>
        powerFull(x.q.slice(1, a, b), x.k.slice(1, a, b), x.v.slice(1, a, b), {
          logG: x.logG.slice(1, a, b),
          degree,
          chunkSize: 3,
          initialState: state,
          returnFinalState: true,
        });
      const first = part(0, m, { s: x.s, z: x.z });
      const second = part(m, base.time, first.finalState);
      const outputs = [first.output, second.output, second.finalState.s, second.finalState.z];
      const upstream = [up.output.slice(1, 0, m), up.output.slice(1, m, base.time), up.s, up.z];
      backwardAll(
        outputs,
        upstream.map((u) => u.contiguous()),
      );
      const [a, b] = await Promise.all([first.output.data(), second.output.data()]);
      const joined: number[] = [];
      for (let n = 0; n < base.batch; n++) {
        for (const half of [a, b]) {
          const rows = half.length / base.batch;
          joined.push(...half.slice(n * rows, (n + 1) * rows));
        }
      }
      const found: Record<string, ArrayLike<number>> = {
        output: joined,
        s: await second.finalState.s.data(),
        z: await second.finalState.z.data(),
      };
      for (const [name, input] of Object.entries(x)) found[`d${name}`] = await input.grad!.data();
      expectSame(found, whole, (name) => 4 * allowed(name));
    });
  });

  it.each([null, 4])(
    "scaling q, k or scale leaves a sum-normalised output unchanged, chunkSize %s",
    async (chunkSize) => {
      const { inputs } = randomInputs(base);
      const options = { degree: 2, chunkSize };
      const plain = await (await run(inputs, options)).data();
      const times = (name: string, factor: number): Arrays => ({
        ...inputs,
        [name]: { ...inputs[name], values: inputs[name].values.map((x) => x * factor) },
      });
      for (const factor of [-4, 2 ** -20, 2 ** 13]) {
        // Powers of two: the scaled inputs are exact.
        expectClose(await (await run(times("q", factor), options)).data(), plain, tolerance("output"), `q × ${factor}`);
        expectClose(await (await run(times("k", factor), options)).data(), plain, tolerance("output"), `k × ${factor}`);
      }
      for (const scale of [-3, 1e-6, 1e4]) {
        const scaled = await (await run(inputs, { ...options, scale })).data();
        expectClose(scaled, plain, tolerance("output"), `scale ${scale}`);
      }
    },
  );

  it.each([null, 4])("a constant v comes out as it is, chunkSize %s", async (chunkSize) => {
    const { inputs } = randomInputs(base);
    inputs.v.values.fill(0.75);
    const out = await (await run(inputs, { chunkSize })).data();
    expectClose(out, new Float64Array(out.length).fill(0.75), tolerance("output"), "output");
  });

  it.each([null, 2, 4])(
    "logG = −Infinity forgets everything before, without a NaN, chunkSize %s",
    async (chunkSize) => {
      const problem: Problem = { ...base, initial: true, final: true, options: { chunkSize } };
      const arrays = randomInputs(problem);
      const { time, heads } = base;
      const cut = 6;
      const logG = arrays.inputs.logG.values;
      for (let b = 0; b < base.batch; b++) {
        for (let h = 0; h < heads; h++) logG[(b * time + cut) * heads + h] = Number.NEGATIVE_INFINITY;
      }
      // Gradients only from what comes after, so that none may reach what was before.
      const perBatch = arrays.upstream.output.values.length / base.batch;
      for (let b = 0; b < base.batch; b++) {
        arrays.upstream.output.values.fill(0, b * perBatch, b * perBatch + (perBatch / time) * cut);
      }
      const all = await solve(device, problem, arrays);
      for (const [name, values] of Object.entries(all)) {
        expect(Array.from(values).every(Number.isFinite), `${name} is finite`).toBe(true);
      }
      const later: Problem = { ...base, time: time - cut, final: true, options: { chunkSize } };
      const tail = (values: Float64Array) => {
        const width = values.length / base.batch / time;
        const rows: number[] = [];
        for (let b = 0; b < base.batch; b++)
          rows.push(...values.slice((b * time + cut) * width, (b + 1) * time * width));
        return Float64Array.from(rows);
      };
      const crop = (from: Arrays, names: string[]): Arrays =>
        Object.fromEntries(
          names.map((name) => {
            const { shape, values, dtype } = from[name];
            return [name, { shape: shape.with(1, time - cut), values: tail(values), dtype }];
          }),
        );
      const alone = await solve(device, later, {
        inputs: crop(arrays.inputs, ["q", "k", "v", "logG"]),
        upstream: { ...arrays.upstream, ...crop(arrays.upstream, ["output"]) },
      });
      expectClose(tail(Float64Array.from(all.output)), alone.output, tolerance("output"), "output after the cut");
      for (const name of ["dq", "dk", "dv"]) {
        expectClose(tail(Float64Array.from(all[name])), alone[name], tolerance(name), `${name} after the cut`);
      }
      for (const name of ["s", "z"]) expectClose(all[name], alone[name], tolerance(name), `final ${name}`);
      for (const name of ["ds", "dz"]) {
        expect(
          Array.from(all[name]).every((x) => x === 0),
          name,
        ).toBe(true);
      }
      const largest = Math.max(...Array.from(all.dlogG, Math.abs));
      for (let b = 0; b < base.batch; b++) {
        for (let n = 0; n < (cut + 1) * heads; n++) {
          expect(Math.abs(all.dlogG[b * time * heads + n])).toBeLessThanOrEqual(tolerance("dlogG") * largest);
        }
      }
    },
  );

  it("very negative gates: each token sees itself alone", async () => {
    const { inputs } = randomInputs({ ...base, queryHeads: 2 });
    for (const gate of [-200, -1e4, -3e38]) {
      inputs.logG.values.fill(gate);
      for (const chunkSize of [null, 1, 4]) {
        const out = await (await run(inputs, { chunkSize })).data();
        expectClose(out, inputs.v.values, tolerance("output"), `logG ${gate}, chunkSize ${chunkSize}`);
      }
    }
  });

  it("a zero query or orthogonal keys give 0, and zero gradients", async () => {
    const problem: Problem = { ...base, batch: 1, queryHeads: 1, heads: 1, time: 5, options: { chunkSize: 2 } };
    const arrays = randomInputs(problem);
    arrays.inputs.q.values.fill(0, 4, 8); // token 1
    for (const options of [{ chunkSize: 2 }, { chunkSize: null }]) {
      const found = await solve(device, { ...problem, options }, arrays);
      expect(Array.from(found.output).slice(3, 6)).toEqual([0, 0, 0]);
      expect(Array.from(found.dq).slice(4, 8).map(Math.abs)).toEqual([0, 0, 0, 0]);
      for (const values of Object.values(found)) expect(Array.from(values).every(Number.isFinite)).toBe(true);
    }
    const orthogonal = randomInputs({ ...problem, time: 3 });
    orthogonal.inputs.q.values.set([1, 0, 0, 0, 0, 2, 0, 0, 3, 1, 0, 0]);
    orthogonal.inputs.k.values.set([0, 0, 1, 1, 0, 0, 5, 0, 0, 0, 1, 1]);
    const found = await solve(device, { ...problem, time: 3 }, orthogonal);
    for (const name of ["output", "dq", "dk", "dv", "dlogG"]) {
      expect(
        Array.from(found[name]).every((x) => x === 0),
        name,
      ).toBe(true);
    }
  });

  it("permuting batch entries or heads permutes the output", async () => {
    const problem: Problem = { ...base, queryHeads: 2, options: { chunkSize: 4 } };
    const { inputs } = randomInputs(problem);
    const plain = await (await run(inputs, { chunkSize: 4 })).data();
    const { q, k, v, logG } = place(device, inputs);
    const swap = async (axis: number) => {
      // A view with the two entries of the axis exchanged, made of two slices run on their own.
      const outs: Float64Array[] = [];
      for (const n of [1, 0]) {
        const one = (x: Tensor) => x.slice(axis, n, n + 1);
        const out = powerFull(one(q), one(k), one(v), { logG: one(logG), chunkSize: 4 });
        outs.push(Float64Array.from(await out.data()));
      }
      return outs;
    };
    const half = plain.length / 2;
    const [second, first] = await swap(0);
    expectClose(first, plain.slice(0, half), tolerance("output"), "batch entry 0");
    expectClose(second, plain.slice(half), tolerance("output"), "batch entry 1");
    const [head1, head0] = await swap(2);
    const e = base.valueDim;
    const head = (h: number) => Float64Array.from(plain).filter((_, n) => Math.floor(n / e) % 2 === h);
    expectClose(head0, head(0), tolerance("output"), "head 0");
    expectClose(head1, head(1), tolerance("output"), "head 1");
  });

  it.each([null, 1, 3, 4])("causal bit for bit, whatever the future holds, chunkSize %s", async (chunkSize) => {
    const { time } = base;
    for (const degree of [1, 2, 3, 4]) {
      const { inputs } = randomInputs({ ...base, degree });
      const plain = await (await run(inputs, { degree, chunkSize })).data();
      for (const poison of [Number.NaN, Number.POSITIVE_INFINITY, -7]) {
        for (const cut of [1, 4, 10]) {
          const changed: Arrays = structuredClone(inputs);
          for (const [name, { values }] of Object.entries(changed)) {
            const width = values.length / base.batch / time;
            const value = name === "logG" && !Number.isNaN(poison) ? -Math.abs(poison) : poison;
            for (let b = 0; b < base.batch; b++) values.fill(value, (b * time + cut) * width, (b + 1) * time * width);
          }
          const out = await (await run(changed, { degree, chunkSize })).data();
          const width = plain.length / base.batch / time;
          for (let b = 0; b < base.batch; b++) {
            const [from, to] = [b * time * width, (b * time + cut) * width];
            expect(out.slice(from, to), `p=${degree}, ${poison} from token ${cut}`).toEqual(plain.slice(from, to));
          }
        }
      }
    }
  });

  it.each([1e-3, 1e3])("keys of size %f at p=4", async (size) => {
    const problem: Problem = { ...base, degree: 4, options: { chunkSize: 4 } };
    const { inputs } = randomInputs(problem);
    const oracle = await getDevice("oracle");
    const scaled: Arrays = { ...inputs, k: { ...inputs.k, values: inputs.k.values.map((x) => x * size) } };
    for (const chunkSize of [null, 4]) {
      const out = await (await run(scaled, { degree: 4, chunkSize })).data();
      const truth = await (await run(scaled, { degree: 4, chunkSize: null }, oracle)).data();
      expectClose(out, truth, tolerance("output"), `chunkSize ${chunkSize}`);
    }
  });

  it("reads views without copies: transposed, sliced and expanded inputs", async () => {
    const { inputs } = randomInputs({ ...base, queryHeads: 2 });
    const { q, k, v, logG } = place(device, inputs);
    const plain = await powerFull(q, k, v, { logG, chunkSize: 4 }).data();
    const { batch, time, headDim } = base;
    const byHead = place(device, {
      k: {
        shape: [batch, 2, time, headDim],
        values: Float64Array.from(await k.transpose(1, 2).data()),
        dtype: "f32",
      },
    }).k;
    expectClose(await powerFull(q, byHead.transpose(1, 2), v, { logG, chunkSize: 4 }).data(), plain, 0, "transposed k");
    const one = k.slice(2, 0, 1);
    const shared = await powerFull(q, one.expand(k.shape), v, { logG, chunkSize: 4 }).data();
    const copied = await powerFull(q, tensor(await one.expand(k.shape).data(), k.shape, { device }), v, {
      logG,
      chunkSize: 4,
    }).data();
    expectClose(shared, copied, 0, "expanded k");
  });
});
