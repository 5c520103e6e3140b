import { MATRIX_DIRECTIVES, type MatrixUnits } from "../../../devices/webgpu/matrix-units.js";
import { GROUP, OCTET } from "./features.js";

/** How the workgroups of power attention's kernels share their work. */
export interface PowerTiles {
  /** Rows and steps of a matrix, and its columns: wide ones as far as they go, narrow ones for the rest. */
  M: number;
  K: number;
  wide: number;
  narrow: number;
  subgroupSize: number;
  /** Packed rows are this many elements long, or a multiple; packed values this many columns. */
  stepMultiple: number;
  columnMultiple: number;
  /** Sums over tokens, [features × columns]: groups of 64 features of a workgroup, tokens at a time, subgroups down and across. */
  accumulate: { groups: number; steps: number; down: number; across: number };
  /** Sums over features, [tokens × columns]: tokens of a workgroup, subgroups down and across. */
  read: { tokens: number; down: number; across: number };
  /** Pairs of tokens: queries of a workgroup, keys at a time, subgroups down. */
  pairs: { rows: number; keys: number; down: number };
}

/** The most that one of the kernels binds. */
const BINDINGS = 9;

/** The tiles of a GPU, or undefined where matrix units have no shape that fits. */
export function powerTiles(
  units: MatrixUnits | undefined,
  limits: GPUSupportedLimits,
  tuned: Record<string, Record<string, number>>,
): PowerTiles | undefined {
  if (!units || limits.maxStorageBuffersPerShaderStage < BINDINGS) return undefined;
  const { narrow, subgroupSize } = units;
  const { M, K } = narrow;
  if (narrow.N !== OCTET || GROUP % M !== 0 || 16 % K !== 0) return undefined;
  const wide = units.M === M && units.K === K && 16 % units.N === 0 ? units.N : narrow.N;
  const matrices = { M, K, wide, narrow: narrow.N, subgroupSize };
  // Subgroups of fewer than 16 are a processor that plays a GPU: it compiles large tiles for minutes.
  if (subgroupSize < 16 || limits.maxComputeWorkgroupStorageSize < 48 * 1024) {
    return {
      ...{ ...matrices, stepMultiple: OCTET, columnMultiple: OCTET },
      accumulate: { groups: 1, steps: 16, down: 2, across: 1 },
      read: { tokens: 32, down: 2, across: 1 },
      pairs: { rows: 32, keys: 16, down: 2 },
    };
  }
  return {
    ...{ ...matrices, stepMultiple: Math.max(K, OCTET), columnMultiple: OCTET },
    accumulate: { groups: 4, steps: 32, down: 4, across: 1, ...tuned.accumulate },
    read: { tokens: 128, down: 4, across: 1, ...tuned.read },
    pairs: { rows: 128, keys: 32, down: 4, ...tuned.pairs },
  };
}

/** Features of packed rows are at most 1 and mostly far less: they are multiplied by this power of two. */
export const FEATURE_EXPONENT = 10;

/** 16-byte vectors from one row of a tile to the next: odd, so that eight rows start in different banks. */
export const rowStride = (octets: number) => octets + 1 - (octets % 2);

/** Matrices side by side: where each begins, in octets of columns, and how many columns it has. */
export interface Column {
  octet: number;
  width: number;
}

export function columnMatrices(columns: number, { wide, narrow }: PowerTiles): Column[] {
  const matrices: Column[] = [];
  for (let at = 0; at < columns; ) {
    const width = at + wide <= columns ? wide : narrow;
    matrices.push({ octet: at / OCTET, width });
    at += width;
  }
  return matrices;
}

/** Text once for each of `count`: compilers keep matrices in registers only where each has a name of its own. */
export const each = (count: number, text: (k: number) => string) =>
  Array.from({ length: count }, (_, k) => text(k)).join("\n");

/** A matrix of sums for each of `down` rows of matrices and each column matrix: sum_i_j. */
export const declareSums = (down: number, columns: Column[]) =>
  each(down, (i) => columns.map(({ width }, j) => `var sum_${i}_${j}: Result${width};`).join(" "));

/** sum_i_j += left_i × right_j; `left(i)` and `right(column)` say where each is loaded from. */
export const multiplyAdd = (
  down: number,
  columns: Column[],
  left: (i: number) => string,
  right: (column: Column) => string,
) => `
${columns.map((column, j) => `let right_${j} = ${right(column)};`).join("\n")}
${each(
  down,
  (i) => `let left_${i} = ${left(i)};
${columns.map((_, j) => `sum_${i}_${j} = subgroupMatrixMultiplyAccumulate(left_${i}, right_${j}, sum_${i}_${j});`).join("\n")}`,
)}`;

/** Stores each sum_i_j to `target`, from `at(i)` and its column on, rows `stride` elements apart. */
export const storeSums = (down: number, columns: Column[], target: string, stride: string, at: (i: number) => string) =>
  each(
    down,
    (i) => `{ let at = ${at(i)};
${columns.map(({ octet }, j) => `subgroupMatrixStore<row_major>(&${target}, at + ${octet * OCTET}u, sum_${i}_${j}, ${stride});`).join("\n")} }`,
  );

/** What kernels on matrix units begin with. */
export function matrices({ M, K, wide, narrow }: PowerTiles): string {
  const widths = [...new Set([wide, narrow])];
  return `${MATRIX_DIRECTIVES}
alias Left = subgroup_matrix_left<f16, ${K}, ${M}>;
${widths.map((N) => `alias Right${N} = subgroup_matrix_right<f16, ${N}, ${K}>; alias Result${N} = subgroup_matrix_result<f32, ${N}, ${M}>;`).join("\n")}
`;
}

export function matricesConstants({ M, K, subgroupSize }: PowerTiles): Record<string, number> {
  return { MATRIX_M: M, MATRIX_K: K, SUBGROUP: subgroupSize, FEATURE_EXPONENT };
}

/**
 * Eight octets of features of a packed row of x, weighted: \`make_group(row, weight, group, at)\` writes them to
 * phi[at] … phi[at + 7]. Needs bindings x (f16, vectors) and octets (i32), X_OCTETS and DEGREE.
 */
export const MAKE_FEATURES = `
fn halves(word: u32) -> vec2<f16> { return bitcast<vec2<f16>>(word); }
fn times(vector: vec4u, factor: f16) -> vec4u {
  return vec4u(
    bitcast<u32>(halves(vector.x) * factor), bitcast<u32>(halves(vector.y) * factor),
    bitcast<u32>(halves(vector.z) * factor), bitcast<u32>(halves(vector.w) * factor));
}
fn half_of(row: u32, i: u32) -> f16 {
  let word = load4_x(row * X_OCTETS + i / 8u)[(i / 2u) & 3u];
  return select(halves(word).x, halves(word).y, (i & 1u) == 1u);
}
fn make_group(row: u32, weight: f16, group: u32, at: u32) {
  if (DEGREE == 2) {
    // All prefixes of a block of x, times one octet.
    let word = bitcast<u32>(load_octets(8u * group));
    let first = load4_x(row * X_OCTETS + (word & 255u) / 8u);
    let octet = load4_x(row * X_OCTETS + (word >> 24u));
    for (var k = 0u; k < 4u; k++) {
      let pair = halves(first[k]) * weight;
      phi[at + 2u * k] = times(octet, pair.x);
      phi[at + 2u * k + 1u] = times(octet, pair.y);
    }
    return;
  }
  for (var k = 0u; k < 8u; k++) {
    let word = bitcast<u32>(load_octets(8u * group + k));
    var factor = weight;
    for (var m = 0u; m + 1u < DEGREE; m++) { factor *= half_of(row, (word >> (8u * m)) & 255u); }
    phi[at + k] = times(load4_x(row * X_OCTETS + (word >> 24u)), factor);
  }
}
`;
