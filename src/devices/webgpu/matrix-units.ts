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

/** What a kernel's text begins with to use matrix units. */
export const MATRIX_DIRECTIVES = `enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;
diagnostic(off, chromium.subgroup_matrix_uniformity);
`;
