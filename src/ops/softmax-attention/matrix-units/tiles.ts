import { type Tile, type TileSizes, type TunedTiles, tileProblem } from "../../../devices/webgpu/legal-tiles.js";
import { type Matrices, matricesOf } from "../../../devices/webgpu/matrix-text.js";
import type { MatrixUnits } from "../../../devices/webgpu/matrix-units.js";
import { OCTET } from "../../power-attention/matrix-units/features.js";
import { tileName } from "../../power-attention/matrix-units/tiles.js";

/** How the workgroups of softmax attention's kernels share their work. */
export interface SoftmaxTiles extends Matrices {
  /** Packed rows are a multiple of this many elements long. */
  stepMultiple: number;
  /** Outputs, and gradients at queries: queries of a workgroup, keys at a time, subgroups down and across. */
  softmax: { rows: number; keys: number; down: number; across: number };
  softmaxQueries: { rows: number; keys: number; down: number; across: number };
  /** Gradients at keys: keys of a workgroup, queries at a time, subgroups down and across. */
  softmaxKeys: { rows: number; queries: number; down: number; across: number };
}

export const SOFTMAX_KERNELS = ["softmax", "softmaxQueries", "softmaxKeys"] as const;

/** The most that one of the kernels binds. */
const BINDINGS = 8;

/** Larger heads leave too few registers. */
const LARGEST_HEAD = 128;

interface Heads {
  headDim: number;
  valueDim: number;
}

/**
 * The tiles of a GPU for heads of these sizes, or undefined where matrix units have no shape that fits. On an NVIDIA H200
 * these were the fastest of those tried (docs/LOG.md).
 */
export function softmaxTiles(
  units: MatrixUnits | undefined,
  limits: GPUSupportedLimits,
  { headDim, valueDim }: Heads,
  tuned: TunedTiles,
): SoftmaxTiles | undefined {
  if (!units || limits.maxStorageBuffersPerShaderStage < BINDINGS) return undefined;
  const matrices = matricesOf(units);
  const { M, K, narrow, subgroupSize } = matrices;
  if (narrow !== OCTET || 16 % K !== 0) return undefined;
  // Subgroups of fewer than 16 are a processor that plays a GPU: it compiles large tiles for minutes.
  const played = subgroupSize < 16;
  const largest = Math.max(headDim, valueDim);
  if (largest > (played ? 64 : LARGEST_HEAD)) return undefined;
  const large = largest > 64;
  const shared = { ...matrices, stepMultiple: Math.max(K, played ? OCTET : 2 * OCTET) };
  const half = 4 * Math.max(M, subgroupSize / 2);
  const others = large && limits.maxComputeWorkgroupStorageSize >= 48 * 1024 ? 32 : 16;
  const tiles: SoftmaxTiles = played
    ? {
        ...shared,
        softmax: { rows: 32, keys: 16, down: 4, across: 1 },
        softmaxQueries: { rows: 16, keys: 16, down: 2, across: 1 },
        softmaxKeys: { rows: 16, queries: 16, down: 2, across: 1 },
      }
    : {
        ...shared,
        // Subgroups of more rows read keys and values less often: as many as they have invocations, where registers suffice.
        softmax: { rows: large ? half : 4 * subgroupSize, keys: others, down: 4, across: 1 },
        softmaxQueries: { rows: half, keys: others, down: large ? 4 : 2, across: large ? 1 : 2 },
        softmaxKeys: { rows: half, queries: others, down: 4, across: large ? 2 : 1 },
      };
  const sizes = softmaxSizes({ headDim, valueDim }, tiles);
  const fits = (name: string, tile: Tile) => tileProblem(name, tile, matrices, limits, sizes) === undefined;
  for (const kernel of SOFTMAX_KERNELS) {
    const name = tileName(kernel, headDim, valueDim);
    // A tile that was tuned for smaller heads may not fit these.
    if (Object.hasOwn(tuned, name) && fits(name, tuned[name])) Object.assign(tiles, { [kernel]: tuned[name] });
    else if (!fits(kernel, tiles[kernel])) return undefined;
  }
  return tiles;
}

export function softmaxSizes({ headDim, valueDim }: Heads, { stepMultiple }: SoftmaxTiles): TileSizes {
  const [x, y] = [headDim, valueDim].map((dim) => (Math.ceil(dim / stepMultiple) * stepMultiple) / OCTET);
  return { x, y, sumAt: y };
}
