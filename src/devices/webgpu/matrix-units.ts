/** A product that the adapter's matrix units do in one instruction: [M × K] by [K × N], f16 in, f32 out. */
export interface MatrixShape {
  M: number;
  N: number;
  K: number;
}

/** What a kernel must know of a GPU with matrix units. */
export interface MatrixUnits extends MatrixShape {
  /** Invocations of a subgroup, which work on a matrix together. */
  subgroupSize: number;
  /** The deepest of the shapes with the fewest columns: it wastes least on a product of few columns. */
  narrow: MatrixShape;
}

interface Config extends MatrixShape {
  componentType: string;
  resultComponentType: string;
}

/**
 * The adapter's largest shape with f16 operands and f32 sums, or undefined where it has none, where the device was made
 * without the features, or where subgroups have no one size.
 */
export function matrixUnits(device: GPUDevice, info: GPUAdapterInfo | undefined): MatrixUnits | undefined {
  for (const feature of ["shader-f16", "subgroups", "chromium-experimental-subgroup-matrix"]) {
    if (!device.features.has(feature)) return undefined;
  }
  const {
    subgroupMatrixConfigs: configs = [],
    subgroupMinSize,
    subgroupMaxSize,
  } = (info ?? {}) as {
    subgroupMatrixConfigs?: Config[];
    subgroupMinSize?: number;
    subgroupMaxSize?: number;
  };
  if (!subgroupMinSize || subgroupMinSize !== subgroupMaxSize) return undefined;
  const usable = configs.filter((c) => c.componentType === "f16" && c.resultComponentType === "f32");
  const shape = ({ M, N, K }: MatrixShape) => ({ M, N, K });
  const [best] = usable.sort((a, b) => b.M * b.N * b.K - a.M * a.N * a.K);
  const [narrow] = [...usable].sort((a, b) => a.N - b.N || b.K - a.K);
  return best && { ...shape(best), subgroupSize: subgroupMinSize, narrow: shape(narrow) };
}

/** How a workgroup's tile of a product is shared out. */
export interface MatrixTile {
  /** Rows and columns of the workgroup's tile, and the inner steps that it holds at once. */
  rows: number;
  columns: number;
  steps: number;
  /** Subgroups down and across. */
  down: number;
  across: number;
}

/**
 * The tile for an adapter: of those that fit its workgroup memory, the largest that still gives each subgroup whole
 * matrices. The first line is what ran fastest on an H200; the last fits everything.
 */
const TILES: MatrixTile[] = [
  { rows: 128, columns: 256, steps: 32, down: 2, across: 4 },
  { rows: 128, columns: 128, steps: 32, down: 2, across: 2 },
  { rows: 64, columns: 64, steps: 32, down: 2, across: 2 },
  { rows: 32, columns: 32, steps: 16, down: 2, across: 2 },
];

/** Halves that lie between rows of a tile, so that they start in different banks. */
export const ROW_GAP = 8;

export function tileBytes(tile: MatrixTile, units: MatrixUnits): number {
  const halves = tile.rows * (tile.steps + ROW_GAP) + tile.steps * (tile.columns + ROW_GAP);
  return 2 * halves + 4 * tile.down * tile.across * units.M * units.N;
}

export function chooseTile(
  units: MatrixUnits,
  limits: GPUSupportedLimits,
  rows: number,
  columns: number,
): MatrixTile | undefined {
  const fits = TILES.filter(
    (tile) =>
      tileBytes(tile, units) <= limits.maxComputeWorkgroupStorageSize &&
      tile.down * tile.across * units.subgroupSize <= limits.maxComputeInvocationsPerWorkgroup &&
      tile.rows % (tile.down * units.M) === 0 &&
      tile.columns % (tile.across * units.N) === 0 &&
      tile.steps % units.K === 0,
  );
  // Subgroups of fewer than 16 are a processor that plays a GPU: it compiles large tiles for minutes.
  if (units.subgroupSize < 16) return fits[fits.length - 1];
  // A tile much larger than the result would multiply zeros.
  return fits.find((tile) => tile.rows < 2 * rows && tile.columns < 2 * columns) ?? fits[fits.length - 1];
}

/** What a kernel's text begins with to use matrix units. */
export const MATRIX_DIRECTIVES = `enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;
diagnostic(off, chromium.subgroup_matrix_uniformity);
`;

export function matrixConstants(units: MatrixUnits, tile: MatrixTile): Record<string, number> {
  return {
    MATRIX_M: units.M,
    MATRIX_N: units.N,
    MATRIX_K: units.K,
    SUBGROUP: units.subgroupSize,
    ROWS: tile.rows,
    COLUMNS: tile.columns,
    STEPS: tile.steps,
    DOWN: tile.down,
    ACROSS: tile.across,
    GAP: ROW_GAP,
  };
}
