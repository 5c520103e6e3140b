import { MATRIX_DIRECTIVES, type MatrixUnits } from "./matrix-units.js";

/** Rows and steps of a matrix, and its columns: wide ones as far as they go, narrow ones for the rest. */
export interface Matrices {
  M: number;
  K: number;
  wide: number;
  narrow: number;
  subgroupSize: number;
}

export function matricesOf(units: MatrixUnits): Matrices {
  const { M, K, N: narrow } = units.narrow;
  const wide = units.M === M && units.K === K && 16 % units.N === 0 ? units.N : narrow;
  return { M, K, wide, narrow, subgroupSize: units.subgroupSize };
}

export function matrixConstants({ M, K, wide, narrow, subgroupSize }: Matrices): Record<string, number> {
  return { MATRIX_M: M, MATRIX_K: K, WIDE: wide, NARROW: narrow, SUBGROUP: subgroupSize };
}

/** 16-byte vectors from one row of a tile to the next: odd, so that eight rows start in different banks. */
export const rowStride = (octets: number) => octets + 1 - (octets % 2);

/** Matrices side by side: where each begins, in octets of columns, and how many columns it has. */
export interface Column {
  octet: number;
  width: number;
}

export function columnMatrices(columns: number, { wide, narrow }: Matrices): Column[] {
  const matrices: Column[] = [];
  for (let at = 0; at < columns; ) {
    const width = at + wide <= columns ? wide : narrow;
    matrices.push({ octet: at / 8, width });
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
${columns.map(({ octet }, j) => `subgroupMatrixStore<row_major>(&${target}, at + ${octet * 8}u, sum_${i}_${j}, ${stride});`).join("\n")} }`,
  );

/** What kernels on matrix units begin with. */
export function matrices({ M, K, wide, narrow }: Matrices): string {
  const widths = [...new Set([wide, narrow])];
  return `${MATRIX_DIRECTIVES}
alias Left = subgroup_matrix_left<f16, ${K}, ${M}>;
${widths.map((N) => `alias Right${N} = subgroup_matrix_right<f16, ${N}, ${K}>; alias Result${N} = subgroup_matrix_result<f32, ${N}, ${M}>;`).join("\n")}
`;
}
