import { webgpuDevice } from "../../devices/webgpu/device.js";
import { each } from "../../devices/webgpu/each.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import type { DType } from "../../tensor/dtype.js";
import { noGrad } from "../../tensor/tape.js";
import { empty, scope } from "../../tensor/tensor.js";
import { reduce } from "../reduce/webgpu.js";
import type { SquareSum } from "./contract.js";

/** Tensors of one dispatch: a model has many small ones. With the result as many as every GPU binds. */
const TOGETHER = 7;
/** Elements that an invocation adds up at least, and workgroups that keep a GPU busy. */
const SERIAL = 32;
const ENOUGH = 1024;

/** Workgroups take tensors one after the other, from `begin` on each; a workgroup leaves one sum. */
const kernel = (dtypes: readonly DType[]): KernelSource => ({
  name: "square-sums",
  constants: {},
  tensors: {
    ...Object.fromEntries(dtypes.map((dtype, n) => [`x${n}`, { dtype, access: "read" } as const])),
    out: { dtype: "f32", access: "write" },
  },
  parameters: Object.fromEntries(
    ["first", ...dtypes.flatMap((_, n) => [`size${n}`, `begin${n}`, `end${n}`])].map((name) => [name, "u32"] as const),
  ),
  body: () => `
var<workgroup> partial: array<f32, 256>;
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  let group = id.x;
  var sum = 0.0;
  ${each(
    dtypes.length,
    (n) => `if (group >= P.begin${n} && group < P.end${n}) {
    let step = 256u * (P.end${n} - P.begin${n});
    for (var i = 256u * (group - P.begin${n}) + lane; i < P.size${n}; i += step) { let x = load_x${n}(i); sum += x * x; }
  }`,
  )}
  partial[lane] = sum;
  for (var reach = 128u; reach > 0u; reach /= 2u) {
    workgroupBarrier();
    if (lane < reach) { partial[lane] += partial[lane + reach]; }
  }
  if (lane == 0u) { store_out(P.first + group, partial[0]); }
}`,
});

export const squareSum: SquareSum = (tensors) =>
  noGrad(() =>
    scope(() => {
      const device = webgpuDevice(tensors[0]);
      const shares = tensors.map(({ size }) => Math.max(1, Math.min(ENOUGH, Math.ceil(size / (256 * SERIAL)))));
      const sums = empty([shares.reduce((a, b) => a + b, 0)], device, "f32");
      let first = 0;
      for (let at = 0; at < tensors.length; at += TOGETHER) {
        const some = tensors.slice(at, at + TOGETHER);
        const parameters: Record<string, number> = { first };
        let groups = 0;
        for (const [n, { size }] of some.entries()) {
          parameters[`size${n}`] = size;
          parameters[`begin${n}`] = groups;
          groups += shares[at + n];
          parameters[`end${n}`] = groups;
        }
        device.dispatch(kernel(some.map(({ dtype }) => dtype)), {
          tensors: { ...Object.fromEntries(some.map((x, n) => [`x${n}`, x])), out: sums },
          parameters,
          workgroups: [groups],
        });
        first += groups;
      }
      return reduce("sum", sums, [0]).reshape([]);
    }),
  );
