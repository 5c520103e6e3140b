import type { WebGpuDevice } from "../devices/webgpu/device.js";
import type { Tile, TileSizes } from "../devices/webgpu/legal-tiles.js";
import { matricesOf } from "../devices/webgpu/matrix-text.js";
import { chooseTile } from "../ops/matmul/webgpu-matrix-units.js";
import { kernelsOf, powerTiles, tileName, tileSizes } from "../ops/power-attention/matrix-units/tiles.js";
import { softmaxAttention } from "../ops/softmax-attention/index.js";
import { SOFTMAX_KERNELS, softmaxSizes, softmaxTiles } from "../ops/softmax-attention/matrix-units/tiles.js";
import { powerFull } from "../power-attention.js";
import { randn, uniform } from "../tensor/create.js";
import type { Tensor } from "../tensor/tensor.js";

/** A kernel as tiles name it and as profiles do, and the table's tile for the problem. */
export interface TiledKernel {
  name: string;
  dispatches: RegExp;
  start: Tile;
  sizes?: TileSizes;
}

/** Work to time kernels in. */
export interface Problem {
  words: string;
  kernels: TiledKernel[];
  /** Inputs in the device's memory; `run` gives results that the caller disposes. */
  prepare(): { run(): Tensor[]; dispose(): void };
}

/** What profiles call the kernels of a tile. */
export const DISPATCHES: Record<string, RegExp> = {
  accumulate: /^accumulate-on-matrix-units$/,
  read: /^read-on-matrix-units$/,
  pairs: /^pairs-on-matrix-units$/,
  pairsQueries: /^pairs-gradient-queries$/,
  pairsKeys: /^pairs-gradient-keys$/,
  square: /^square-/,
  gradient: /^feature-gradient/,
  softmax: /^softmax-on-matrix-units$/,
  softmaxQueries: /^softmax-gradient-queries$/,
  softmaxKeys: /^softmax-gradient-keys$/,
  matmul: /^matmul-.*matrix-units$/,
};

/** Attention of bf16 inputs and its gradients, of what else it takes too. */
function prepareAttention(
  device: WebGpuDevice,
  shape: number[],
  others: Tensor[],
  attend: (q: Tensor, k: Tensor, v: Tensor) => Tensor,
): ReturnType<Problem["prepare"]> {
  const [q, k, v] = [1, 2, 3].map((seed) => randn(shape, { device, dtype: "bf16", seed, requiresGrad: true }));
  const upstream = randn(shape, { device, dtype: "bf16", seed: 5 });
  const inputs = [q, k, v, ...others];
  const run = () => {
    const output = attend(q, k, v);
    output.backward(upstream);
    const gradients = inputs.map((input) => {
      const { grad } = input;
      input.grad = null;
      return grad!;
    });
    return [output.detach(), ...gradients];
  };
  const dispose = () => {
    for (const tensor of [...inputs, upstream]) tensor.dispose();
  };
  return { run, dispose };
}

/** Power attention and its gradients, bf16, gated, in chunks. */
function powerProblem(device: WebGpuDevice, tokens: number, heads: number, headDim: number, degree: number): Problem {
  const dims = { headDim, valueDim: headDim, degree };
  const tiles = powerTiles(device.matrixUnits, device.gpu.limits, dims, {});
  const kernels = !tiles
    ? []
    : kernelsOf(degree).map((kernel) => {
        const sizes = tileSizes(headDim, headDim, degree, tiles);
        const name = tileName(kernel, headDim, headDim);
        return { name, dispatches: DISPATCHES[kernel], start: tiles[kernel], sizes };
      });
  const prepare = () => {
    const logG = uniform([1, tokens, heads], { device, low: -0.02, high: 0, seed: 4, requiresGrad: true });
    const chunkSize = Math.min(device.chunkSize, tokens / 4);
    return prepareAttention(device, [1, tokens, heads, headDim], [logG], (q, k, v) =>
      powerFull(q, k, v, { logG, degree, chunkSize }),
    );
  };
  const words = `power attention of degree ${degree}, ${tokens} tokens, ${heads} heads of ${headDim}, and its gradients`;
  return { words, kernels, prepare };
}

/** Softmax attention and its gradients, bf16. */
function softmaxProblem(device: WebGpuDevice, batch: number, tokens: number, heads: number, headDim: number): Problem {
  const dims = { headDim, valueDim: headDim };
  const tiles = softmaxTiles(device.matrixUnits, device.gpu.limits, dims, {});
  const kernels = !tiles
    ? []
    : SOFTMAX_KERNELS.map((kernel) => {
        const name = tileName(kernel, headDim, headDim);
        return { name, dispatches: DISPATCHES[kernel], start: tiles[kernel], sizes: softmaxSizes(dims, tiles) };
      });
  const prepare = () => prepareAttention(device, [batch, tokens, heads, headDim], [], softmaxAttention);
  const words = `softmax attention, ${batch} × ${tokens} tokens, ${heads} heads of ${headDim}, and its gradients`;
  return { words, kernels, prepare };
}

/** A product of f16 matrices. */
function matmulProblem(device: WebGpuDevice, size: number): Problem {
  const start = chooseTile(matricesOf(device.matrixUnits!), device.gpu.limits, size, size, 1);
  const prepare = () => {
    const [a, b] = [1, 2].map((seed) => randn([size, size], { device, dtype: "f16", seed }));
    const dispose = () => {
      for (const tensor of [a, b]) tensor.dispose();
    };
    return { run: () => [a.matmul(b)], dispose };
  };
  const kernels = start ? [{ name: "matmul", dispatches: DISPATCHES.matmul, start: { ...start } }] : [];
  return { words: `a product of f16 matrices, ${size} × ${size}`, kernels, prepare };
}

/** Milliseconds of work on a large GPU; little where a processor plays one. */
export function typicalProblems(device: WebGpuDevice): Problem[] {
  if (device.matrixUnits!.subgroupSize < 16) {
    return [
      powerProblem(device, 64, 1, 16, 2),
      powerProblem(device, 64, 1, 8, 4),
      softmaxProblem(device, 1, 64, 1, 16),
      matmulProblem(device, 64),
    ];
  }
  return [
    powerProblem(device, 16384, 8, 64, 2),
    powerProblem(device, 16384, 4, 128, 2),
    powerProblem(device, 2048, 4, 32, 4),
    softmaxProblem(device, 4, 4096, 8, 64),
    softmaxProblem(device, 4, 4096, 4, 128),
    matmulProblem(device, 4096),
  ];
}
