import { chunkAttention, chunkState, expandedDim, queryState, scope, type Tensor, tensor } from "../../src/index.js";
import { forwardOperations } from "../arithmetic.js";
import { attempt, clearGradients, type Figure, type Question } from "../context.js";
import { describeGpu } from "../machine.js";
import { fastInputs, fastNormals } from "./inputs.js";
import { measureGpu } from "./measure.js";
import { gpuShape, type PowerTime, powerTable, timeFigures } from "./power.js";
import { floorOf, ratesOf } from "./rates.js";

/** The library's own choice makes twice the states, and they are all there at once, in f32, with their gradients. */
const CHUNK = 1024;

export const gpuParts: Question = {
  name: "gpu-parts",
  question: "How long do the parts take by themselves? (T=65,536, 8 heads, d=64, p=2, gated, bf16, states in f32)",
  target: "reported with their floors",
  on: ["webgpu"],
  async run(context) {
    const chunkSize = context.chunkSize ?? (context.quick ? 64 : CHUNK);
    const shape = { ...gpuShape(context, 65536), chunkSize };
    const { batch, tokens, heads, headDim, valueDim, degree } = shape;
    const chunks = Math.ceil(tokens / chunkSize);
    const D = expandedDim(headDim, degree);
    // A backward does twice the forward's products of states and 2.5 times those of pairs.
    const state = batch * tokens * heads * 2 * D * valueDim;
    const inside = forwardOperations(shape) - 2 * state;
    const stateBytes = 4 * batch * chunks * heads * D * (valueDim + 1);
    const vectors = batch * tokens * 2 * heads * headDim; // q, k, v or a gradient of theirs, bf16
    const output = 2 * vectors;

    const device = await context.gpu();
    const figures: Figure[] = [];
    const times: PowerTime[] = [];
    const failures: string[] = [];
    for (const backward of [false, true]) {
      const inputs = fastInputs(device, shape, { dtype: "bf16", requiresGrad: backward });
      const states = { s: [batch, chunks, heads, D, valueDim], z: [batch, chunks, heads, D] };
      const given = Object.fromEntries(
        Object.entries(states).map(([name, extents], seed) => {
          const values = fastNormals(
            extents.reduce((a, b) => a * b, 1),
            seed,
          );
          return [name, tensor(values, extents, { device, requiresGrad: backward })];
        }),
      ) as { s: Tensor; z: Tensor };
      const { q, k, v, logG } = inputs;
      const options = { logG, degree, chunkSize };
      const parts: [string, () => Tensor, number, number][] = [
        [
          "chunkState",
          () => chunkState(k, v, options).s,
          state * (backward ? 3 : 1),
          backward ? 6 * vectors + 2 * stateBytes : 2 * vectors + stateBytes,
        ],
        [
          "chunkAttention",
          () => chunkAttention(q, k, v, options).output,
          inside * (backward ? 3.5 : 1),
          backward ? 9 * vectors + 2 * output : 3 * vectors + output,
        ],
        [
          "queryState",
          () => queryState(q, given, options).output,
          state * (backward ? 3 : 1),
          backward ? 3 * (vectors + stateBytes) + 2 * output : vectors + stateBytes + output,
        ],
      ];
      for (const [part, run, operations, bytes] of parts) {
        const name = `${part}, ${backward ? "forward and backward" : "forward"}`;
        const time = await attempt(failures, name, async (): Promise<PowerTime> => {
          context.progress(`  ${name}`);
          const task = () => {
            scope(() => {
              const out = run();
              if (backward) out.backward(out.detach());
            });
            clearGradients({ q, k, v, logG, ...given });
          };
          const timing = await measureGpu(device, task, { rounds: context.quick ? 3 : 20 });
          const floor = floorOf({ operations, bytes }, ratesOf(describeGpu(device)));
          const ms = (timing.gpu ?? timing.wall).median;
          return { name, timing, ms, operations, bytes, floor, rate: operations / ms / 1e9, chunkSize };
        });
        if (!time) continue;
        times.push(time);
        figures.push(...timeFigures(time));
      }
      inputs.dispose();
      for (const x of Object.values(given)) x.dispose();
    }
    return { figures, ...powerTable(times), failures };
  },
};
