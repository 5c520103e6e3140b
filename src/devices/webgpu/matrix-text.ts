import { each } from "./each.js";
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

/**
 * Rows of a tile two to a line: blocks of `block` rows, those of a matrix, take turns at the first and second half. A line of its
 * own for each short row, odd as well, would be a fifth more memory, and how much of it a workgroup takes decides how many run at once.
 */
export function foldedRows(octets: number, block: number) {
  const stride = 2 * octets + 1;
  return {
    stride,
    /** In 16-byte vectors. */
    size: (rows: number) => Math.ceil(rows / (2 * block)) * block * stride,
    /** Of a row, in WGSL; of a matrix that begins with it, too. */
    place: (row: string) =>
      `((${row}) / ${2 * block}u * ${block}u + (${row}) % ${block}u) * ${stride}u + (${row}) / ${block}u % 2u * ${octets}u`,
    /** Of a row known by now. */
    placeOf: (row: number) =>
      (Math.floor(row / (2 * block)) * block + (row % block)) * stride + (Math.floor(row / block) % 2) * octets,
  };
}

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

/** A matrix of sums for each of `down` rows of matrices and each column matrix: name_i_j. */
export const declareSums = (down: number, columns: Column[], name = "sum") =>
  each(down, (i) => columns.map(({ width }, j) => `var ${name}_${i}_${j}: Result${width};`).join(" "));

/** Sets them to zero, where they are declared outside of a loop and summed in it. */
export const zeroSums = (down: number, columns: Column[], name = "sum") =>
  each(down, (i) => columns.map(({ width }, j) => `${name}_${i}_${j} = Result${width}();`).join(" "));

/** name_i_j += left_i × right_j; `left(i)` and `right(column)` say where each is loaded from. */
export const multiplyAdd = (
  down: number,
  columns: Column[],
  left: (i: number) => string,
  right: (column: Column) => string,
  name = "sum",
) => `
${columns.map((column, j) => `let right_${j} = ${right(column)};`).join("\n")}
${each(
  down,
  (i) => `let left_${i} = ${left(i)};
${columns.map((_, j) => `${name}_${i}_${j} = subgroupMatrixMultiplyAccumulate(left_${i}, right_${j}, ${name}_${i}_${j});`).join("\n")}`,
)}`;

/** Stores each name_i_j to `target`, from `at(i)` and its column on, rows `stride` elements apart, where `inside(i)` holds. */
export const storeSums = (
  down: number,
  columns: Column[],
  target: string,
  stride: string,
  at: (i: number) => string,
  { name = "sum", inside }: { name?: string; inside?: (i: number) => string } = {},
) =>
  each(
    down,
    (i) => `${inside ? `if (${inside(i)}) ` : ""}{ let at = ${at(i)};
${columns.map(({ octet }, j) => `subgroupMatrixStore<row_major>(&${target}, at + ${octet * 8}u, ${name}_${i}_${j}, ${stride});`).join("\n")} }`,
  );

/** What kernels on matrix units begin with. */
export function matrices({ M, K, wide, narrow }: Matrices): string {
  const widths = [...new Set([wide, narrow])];
  return `${MATRIX_DIRECTIVES}
alias Left = subgroup_matrix_left<f16, ${K}, ${M}>;
${widths.map((N) => `alias Right${N} = subgroup_matrix_right<f16, ${N}, ${K}>; alias Result${N} = subgroup_matrix_result<f32, ${N}, ${M}>;`).join("\n")}
`;
}

/** Text once for each matrix of `steps` inner steps, which finds its own in `step`: unrolled, for kernels that are faster so. */
export const eachStep = (steps: number, { K }: Pick<Matrices, "K">, text: string) =>
  each(steps / K, (k) => `{ const step = ${k * K}u; ${text} }`);

/** How lanes share out `size` things: in turn k a lane has the one `at(k)`, a sum, and the last turns may be `within` it or not. */
export function turnsOf(size: number, lanes: number) {
  const at = (k: number) => (k === 0 ? "lane" : `lane + ${k * lanes}u`);
  return {
    count: Math.ceil(size / lanes),
    at,
    within: (k: number, text: string) => ((k + 1) * lanes <= size ? text : `if (${at(k)} < ${size}u) { ${text} }`),
  };
}

/**
 * A tile that comes into registers while the one before is in use: `lines` lines of `octets` octets from `source(n)`, where they
 * are `apart` (as long as they are, unless said), to `target` with lines `stride` apart. `declare` once, `fetch` and then `keep`
 * for each tile. n comes as a sum, to be added to a place: that leaves one place and constants, where sums of sums took a register each.
 */
export function tileAhead(
  name: string,
  tile: { lines: number; octets: number; stride: number; lanes: number; apart?: number },
  source: (n: string) => string,
) {
  const { lines, octets, stride, lanes, apart = octets } = tile;
  const { count, at: n, within } = turnsOf(lines * octets, lanes);
  const inLines = (k: number, length: number) =>
    length === octets ? n(k) : `(${n(k)}) / ${octets}u * ${length}u + (${n(k)}) % ${octets}u`;
  // Where turns are whole lines a lane's octets are apart by a constant.
  const from = (k: number) =>
    lanes % octets === 0 && apart !== octets
      ? `${inLines(0, apart)} + ${((k * lanes) / octets) * apart}u`
      : inLines(k, apart);
  return {
    declare: each(count, (k) => `var ${name}_next_${k} = vec4u(0);`),
    fetch: each(count, (k) => within(k, `${name}_next_${k} = ${source(from(k))};`)),
    keep: each(count, (k) => within(k, `${name}[${inLines(k, stride)}] = ${name}_next_${k};`)),
  };
}
