import { expandedDim } from "../../feature-map.js";
import { record } from "../../tensor/tape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { operation } from "../operation.js";
import { checkPositiveInteger, checkTensor } from "../power-attention/checks.js";
import { toUpstream } from "../power-attention/views.js";
import type { FeatureMapBackward, FeatureMapForward } from "./contract.js";
import { featureMapOracle, featureMapOracleBackward } from "./oracle.js";
import { featureMapWasm, featureMapWasmBackward } from "./wasm.js";
import { featureMapBackwardWebGpu, featureMapWebGpu } from "./webgpu.js";

export const featureMapForward = operation<Parameters<FeatureMapForward>, Tensor>("featureMap", {
  oracle: featureMapOracle,
  wasm: featureMapWasm,
  webgpu: featureMapWebGpu,
});

export const featureMapBackward = operation<Parameters<FeatureMapBackward>, Tensor>("featureMap backward", {
  oracle: featureMapOracleBackward,
  wasm: featureMapWasmBackward,
  webgpu: featureMapBackwardWebGpu,
});

/**
 * φ_degree of each vector: its monomials of that degree, one for each sorted multi-index in lexicographic order, times
 * √(degree! / ∏ multiplicities!), so that φ(a)·φ(b) = (a·b)^degree. Differentiable.
 *
 * @param x [..., d], any float dtype
 * @param degree a positive integer
 * @returns [..., expandedDim(d, degree)], f32
 * @throws TypeError or RangeError where x is not a float tensor of at least one axis, or the degree not a positive integer
 */
export function featureMap(x: Tensor, degree: number): Tensor {
  const caller = "featureMap";
  checkTensor(caller, "x", x);
  checkPositiveInteger(caller, "degree", degree, "use 1 or more");
  const headDim = x.shape.at(-1) ?? 0;
  if (headDim < 1) {
    throw new RangeError(`${caller}: x must have shape [..., headDim], got [${x.shape.join(", ")}]; reshape it`);
  }
  if (x.dtype === "i32")
    throw new TypeError(`${caller}: x must have a float dtype, got i32; convert it with to("f32")`);
  const plan = { rows: x.size / headDim, headDim, degree, expandedDim: expandedDim(headDim, degree) };
  const bytes = 4 * (plan.rows + degree) * plan.expandedDim;
  if (bytes > x.device.memoryLimit) {
    throw new RangeError(
      `${caller}: the features must fit the device's memory, got ${(bytes / 2 ** 30).toFixed(1)} GiB ` +
        `(${plan.rows} vectors × expandedDim ${plan.expandedDim}); lower the degree or the number of vectors`,
    );
  }
  const input = x.contiguous();
  const flat = featureMapForward(x.device, plan, input);
  record(caller, [input], [flat], [input], ([grad], [saved]) => {
    const upstream = toUpstream(grad, "f32");
    return [upstream && featureMapBackward(x.device, plan, saved, upstream).reshape(x.shape)];
  });
  return flat.reshape([...x.shape.slice(0, -1), plan.expandedDim]);
}
