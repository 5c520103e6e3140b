import { each } from "../../../devices/webgpu/each.js";
import { type Tile, type TileSizes, type TunedTiles, tileProblem } from "../../../devices/webgpu/legal-tiles.js";
import { type Matrices, matricesOf, matrixConstants } from "../../../devices/webgpu/matrix-text.js";
import type { MatrixUnits } from "../../../devices/webgpu/matrix-units.js";
import { GROUP, OCTET } from "./features.js";
import { valueOctets } from "./pack.js";
import { HALVES } from "./text.js";

/** How the workgroups of power attention's kernels share their work. */
export interface PowerTiles extends Matrices {
  /** Packed rows are this many elements long, or a multiple; packed values this many columns. */
  stepMultiple: number;
  columnMultiple: number;
  /** Sums over tokens, [features × columns]: groups of 64 features of a workgroup, tokens at a time, subgroups down and across. */
  accumulate: { groups: number; steps: number; down: number; across: number };
  /** Sums over features, [tokens × columns]: tokens of a workgroup, subgroups down and across. */
  read: { tokens: number; down: number; across: number };
  /** Pairs of tokens: queries of a workgroup, keys at a time, subgroups down. */
  pairs: { rows: number; keys: number; down: number };
  /** Their gradients at queries, likewise, and at keys: keys of a workgroup, queries at a time. */
  pairsQueries: { rows: number; keys: number; down: number };
  pairsKeys: { rows: number; queries: number; down: number };
  /** Gradients of features: subgroups, each of as many tokens as it has invocations. */
  gradient: { down: number };
  /** The same at degree 2, as a product of matrices: subgroups at most, tokens of an invocation, octets of y at once at most. */
  square: { down: number; tokens: number; octets: number };
}

/** The most that one of the kernels binds. */
const BINDINGS = 13;

/** What each kernel's tile is called; gradients come through one of two, by degree. */
const KERNELS = ["accumulate", "read", "pairs", "pairsQueries", "pairsKeys"] as const;
export const kernelsOf = (degree: number) => [...KERNELS, degree === 2 ? "square" : "gradient"] as const;

/**
 * The tiles of a GPU for heads of these sizes, or undefined where matrix units have no shape that fits. On an NVIDIA H200
 * these were the fastest of those tried (docs/LOG.md).
 */
export function powerTiles(
  units: MatrixUnits | undefined,
  limits: GPUSupportedLimits,
  { headDim, valueDim, degree }: { headDim: number; valueDim: number; degree: number },
  tuned: TunedTiles,
): PowerTiles | undefined {
  if (!units || limits.maxStorageBuffersPerShaderStage < BINDINGS) return undefined;
  const matrices = matricesOf(units);
  const { M, K, narrow, subgroupSize } = matrices;
  if (narrow !== OCTET || GROUP % M !== 0 || 16 % K !== 0) return undefined;
  const stepMultiple = Math.max(K, OCTET);
  // Subgroups of fewer than 16 are a processor that plays a GPU: it compiles large tiles for minutes.
  const played = subgroupSize < 16;
  if (played && Math.max(headDim, valueDim) > 64) return undefined;
  const large = valueDim > 64;
  const tiles: PowerTiles = played
    ? {
        ...{ ...matrices, stepMultiple, columnMultiple: OCTET },
        accumulate: { groups: 1, steps: 32, down: 4, across: 1 },
        read: { tokens: 32, down: 2, across: 1 },
        pairs: { rows: 32, keys: 16, down: 4 },
        pairsQueries: { rows: 16, keys: 16, down: 2 },
        pairsKeys: { rows: 16, queries: 16, down: 2 },
        gradient: { down: 2 },
        square: { down: 2, tokens: 2, octets: 4 },
      }
    : {
        ...{ ...matrices, stepMultiple, columnMultiple: large ? 2 * OCTET : OCTET },
        accumulate: large ? { groups: 2, steps: 32, down: 2, across: 2 } : { groups: 4, steps: 32, down: 4, across: 1 },
        read: large ? { tokens: 128, down: 2, across: 2 } : { tokens: 256, down: 4, across: 1 },
        pairs: { rows: 64, keys: 16, down: 4 },
        pairsQueries: { rows: 64, keys: 16, down: 4 },
        pairsKeys: { rows: 64, queries: 16, down: 4 },
        gradient: { down: Math.max(headDim, valueDim) > 64 ? 1 : 2 },
        square: { down: 4, tokens: headDim > 64 ? 1 : 2, octets: 4 },
      };
  if (!played && degree > 2) {
    // Rows of x take workgroup memory beside the tiles.
    Object.assign(tiles.read, large || headDim > 64 ? { tokens: 64, down: 2 } : { tokens: 128, down: 4 });
    Object.assign(tiles.gradient, { down: headDim > 32 ? 1 : 2 });
  }
  const sizes = tileSizes(headDim, valueDim, degree, tiles);
  const fits = (name: string, tile: Tile) => tileProblem(name, tile, matrices, limits, sizes) === undefined;
  for (const kernel of kernelsOf(degree)) {
    const name = tileName(kernel, headDim, valueDim);
    // A tile that was tuned for smaller heads may not fit these.
    if (Object.hasOwn(tuned, name) && fits(name, tuned[name])) Object.assign(tiles, { [kernel]: tuned[name] });
    else if (!fits(kernel, tiles[kernel])) return undefined;
  }
  return tiles;
}

export function tileSizes(headDim: number, valueDim: number, degree: number, tiles: PowerTiles): TileSizes {
  const { stepMultiple } = tiles;
  const { stride, sumAt } = valueOctets(valueDim, tiles);
  const x = (Math.ceil(headDim / stepMultiple) * stepMultiple) / OCTET;
  return { x, y: stride, sumAt, kept: degree > 2 ? x : 0 };
}

/** The name of a kernel's tile among tuned ones. */
export const tileName = (kernel: string, headDim: number, valueDim: number) =>
  Math.max(headDim, valueDim) > 64 ? `${kernel}Wide` : kernel;

/** Features of packed rows are at most 1 and mostly far less: they are multiplied by this power of two. */
export const FEATURE_EXPONENT = 10;

export function powerConstants(tiles: PowerTiles): Record<string, number> {
  return { ...matrixConstants(tiles), FEATURE_EXPONENT };
}

const each4 = (text: (word: string, at: number) => string) => [..."xyzw"].map(text).join(", ");

/** Four octets of triangles: element r of low times elements up to r of low, and r of high times those of high beyond. */
const makeHalfTriangles = (
  half: number,
) => `fn make_half_triangles_${half}(low: vec4u, high: vec4u, weight: f16, at: u32) {
${each(4, (k) => {
  const r = 4 * half + k;
  const factor = (block: string) => `halves(${block}.${"xyzw"[r >> 1]}).${"xy"[r % 2]} * weight`;
  const word = (w: string, at: number) => {
    if (2 * at === r) return `bitcast<u32>(vec2<f16>(halves(low.${w}).x * low_${k}, halves(high.${w}).y * high_${k}))`;
    return 2 * at < r ? `bitcast<u32>(halves(low.${w}) * low_${k})` : `bitcast<u32>(halves(high.${w}) * high_${k})`;
  };
  return `  let low_${k} = ${factor("low")};
  let high_${k} = ${factor("high")};
  phi[at + ${k}u] = vec4u(${each4(word)});`;
})}
}`;

/**
 * Octets of features of a packed row of x, weighted, to phi[at] …. At degree 1 `count` of them by their place in the table,
 * `make_octets(row, weight, first, count, at)`, which needs bindings x (f16, vectors) and octets (i32) and X_OCTETS; at degree 2 by
 * two blocks of x, `make_square` and `make_triangles`, both also by halves, and `make_ends` of one (features.ts says what they are).
 */
export const MAKE_FEATURES = `${HALVES}// All prefixes of half a block of x, times one octet.
fn make_half_square(first: vec2u, octet: vec4u, weight: f16, at: u32) {
${each(
  2,
  (k) => `  let pair_${k} = halves(first.${"xy"[k]}) * weight;
  phi[at + ${2 * k}u] = times(octet, pair_${k}.x);
  phi[at + ${2 * k + 1}u] = times(octet, pair_${k}.y);`,
)}
}
fn make_square(first: vec4u, octet: vec4u, weight: f16, at: u32) {
  make_half_square(first.xy, octet, weight, at);
  make_half_square(first.zw, octet, weight, at + 4u);
}
${[0, 1].map(makeHalfTriangles).join("\n")}
fn make_triangles(low: vec4u, high: vec4u, weight: f16, at: u32) {
  make_half_triangles_0(low, high, weight, at);
  make_half_triangles_1(low, high, weight, at + 4u);
}
fn make_ends(octet: vec4u, weight: f16, at: u32) {
  phi[at] = vec4u(${each4((w) => `bitcast<u32>(halves(octet.${w}) * weight * halves(octet.${w}))`)});
}
fn make_octets(row: u32, weight: f16, first: u32, count: u32, at: u32) {
  for (var k = 0u; k < count; k++) {
    let word = bitcast<u32>(load_octets(first + k));
    phi[at + k] = times(load4_x(row * X_OCTETS + (word >> 24u)), weight);
  }
}
`;
