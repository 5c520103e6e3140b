import { describe, it } from "vitest";
import { getDevice } from "../src/devices/get-device.js";
import type { WebGpuDevice } from "../src/devices/webgpu/device.js";
import { expectSame, type Problem, randomInputs, solve } from "./attention.js";
import { deviceOf, isHere } from "./devices.js";
import { attentionTolerance, degreeAllowance, IN_F16 } from "./tolerances.js";

/**
 * Every device against the oracle, outputs and all gradients, in memory poisoned with NaN. Lengths around a chunk's and
 * head dims around a vector's; the largest head dims take short sequences, since the oracle takes its time.
 */
function* sweep(): Generator<[string, Problem]> {
  const chunkSize = 8;
  const dtypes = ["f32", "f16", "bf16"] as const;
  let turn = 0;
  const name = (p: Problem) =>
    `p=${p.degree} T=${p.time} C=${p.options?.chunkSize} heads ${p.queryHeads}/${p.heads} d=${p.headDim} e=${p.valueDim} ${p.dtype}` +
    `${p.gated ? " gated" : ""}${p.initial ? " initial" : ""}${p.final ? " final" : ""}`;
  const one = (p: Partial<Problem> & Pick<Problem, "degree" | "headDim" | "valueDim" | "time">): [string, Problem] => {
    turn++;
    const problem: Problem = {
      batch: 1 + (turn % 2),
      heads: 1 + (turn % 3 === 0 ? 1 : 0),
      queryHeads: (1 + (turn % 3 === 0 ? 1 : 0)) * (1 + (turn % 5 === 0 ? 2 : 0)),
      gated: turn % 4 !== 3,
      initial: turn % 3 === 1,
      final: turn % 2 === 0,
      dtype: "f32",
      seed: turn,
      options: { chunkSize },
      ...p,
    };
    return [name(problem), problem];
  };
  for (const degree of [1, 2, 3, 4]) {
    for (const time of [1, chunkSize - 1, chunkSize, chunkSize + 1, 2 * chunkSize + 3, 4 * chunkSize]) {
      for (const [headDim, valueDim] of [
        [1, 1],
        [3, 5],
        [8, 4],
      ]) {
        yield one({ degree, time, headDim, valueDim });
        yield one({ degree, time, headDim, valueDim, options: { chunkSize: null } });
      }
    }
    for (const dtype of dtypes) {
      for (const normalize of degree % 2 ? (["layernorm", "none"] as const) : (["sum", "layernorm", "none"] as const)) {
        yield one({ degree, time: 19, headDim: 6, valueDim: 7, dtype, gated: true, options: { chunkSize, normalize } });
      }
    }
    yield one({ degree, time: 150, headDim: 4, valueDim: 4, queryHeads: 6, heads: 2, options: { chunkSize: 64 } });
    yield one({ degree, time: 150, headDim: 4, valueDim: 4, queryHeads: 4, heads: 1, options: { chunkSize: null } });
  }
  // d = 16, 64, 128: in chunks as far as the oracle's states stay small, beyond in the quadratic form.
  for (const dtype of dtypes) {
    yield one({ degree: 1, time: 37, headDim: 128, valueDim: 64, dtype, options: { chunkSize: 16 } });
    yield one({ degree: 2, time: 37, headDim: 16, valueDim: 16, dtype, options: { chunkSize: 16 } });
    yield one({ degree: 2, time: 19, headDim: 64, valueDim: 64, dtype, batch: 1, options: { chunkSize } });
    yield one({ degree: 2, time: 9, headDim: 64, valueDim: 32, dtype, batch: 1, options: { chunkSize } });
    yield one({
      degree: 2,
      time: 5,
      headDim: 128,
      valueDim: 16,
      dtype,
      batch: 1,
      heads: 1,
      queryHeads: 2,
      options: { chunkSize: 3 },
    });
    yield one({ degree: 3, time: 9, headDim: 16, valueDim: 16, dtype, batch: 1, options: { chunkSize } });
    yield one({ degree: 4, time: 9, headDim: 16, valueDim: 16, dtype, batch: 1, options: { chunkSize } });
    for (const degree of [1, 2, 3, 4]) {
      for (const headDim of [64, 128]) {
        const rest = { initial: false, final: false, options: { chunkSize: null } };
        yield one({ degree, time: 33, headDim, valueDim: 64, dtype, ...rest });
      }
    }
    yield one({
      degree: 6,
      time: 12,
      headDim: 16,
      valueDim: 16,
      dtype,
      initial: false,
      final: false,
      options: { chunkSize: null },
    });
  }
}

/**
 * The sweep on a device. Where a GPU has matrix units half formats meet in f16 there: the portable kernels for them are a
 * suite of their own.
 */
export function sweepOn(kind: "wasm" | "webgpu", portable = false): void {
  const where = `powerFull against the oracle on ${kind}${portable ? ", portable kernels" : ""}`;
  describe.skipIf(!isHere(kind))(where, async () => {
    const oracle = await getDevice("oracle");
    const device = portable && isHere(kind) ? await getDevice(kind, { portable }) : await deviceOf(kind);
    const inF16 = !portable && (device as Partial<WebGpuDevice>).matrixUnits !== undefined;
    const problems = [...sweep()].filter(([, { dtype }]) => !portable || dtype !== "f32");
    it.each(problems)("%s", async (_, problem) => {
      const arrays = randomInputs(problem);
      const truth = await solve(oracle, problem, arrays);
      expectSame(await solve(device, problem, arrays), truth, (name) => {
        const what = name.startsWith("d") ? "gradient" : "output";
        if (inF16 && problem.dtype !== "f32") return degreeAllowance(problem.degree) * IN_F16[what];
        // States, gates and their gradients are f32 whatever the inputs are.
        const half = !["s", "z", "ds", "dz", "dlogG"].includes(name);
        const dtype = half ? (problem.dtype ?? "f32") : "f32";
        return degreeAllowance(problem.degree) * attentionTolerance(kind, dtype, what);
      });
    });
  });
}
