import { each } from "../../devices/webgpu/each.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { stripColumns, tileProblem } from "../../devices/webgpu/legal-tiles.js";
import {
  columnMatrices,
  declareSums,
  eachStep,
  type Matrices,
  matrices,
  matrixConstants,
  multiplyAdd,
  rowStride,
} from "../../devices/webgpu/matrix-text.js";
import type { DType } from "../../tensor/dtype.js";

/** How a workgroup's tile of a product is shared out. */
export interface MatmulTile {
  /** Rows and columns of the workgroup's tile, and the inner steps that it holds at once. */
  rows: number;
  columns: number;
  steps: number;
  /** Subgroups down and across. */
  down: number;
  across: number;
}

/** The largest first; the last fits everything. */
const TILES: MatmulTile[] = [
  { rows: 128, columns: 128, steps: 32, down: 2, across: 2 },
  { rows: 64, columns: 64, steps: 32, down: 2, across: 2 },
  { rows: 32, columns: 32, steps: 16, down: 2, across: 2 },
];

/** The tile for a product: the largest that fits the device, gives subgroups whole matrices and the GPU enough tiles. */
export function chooseTile(
  units: Matrices,
  limits: GPUSupportedLimits,
  rows: number,
  columns: number,
  batch: number,
  tuned?: MatmulTile,
): MatmulTile | undefined {
  const fits = [...(tuned ? [tuned] : []), ...TILES].filter(
    (tile) => tileProblem("matmul", tile, units, limits) === undefined,
  );
  const smallest = fits[fits.length - 1];
  // Subgroups of fewer than 16 are a processor that plays a GPU: it compiles large tiles for minutes.
  if (units.subgroupSize < 16) return tuned && fits[0] === tuned ? tuned : smallest;
  const count = (tile: MatmulTile) => batch * Math.ceil(rows / tile.rows) * Math.ceil(columns / tile.columns);
  return fits.find((tile) => count(tile) >= 128 && tile.rows < 2 * rows && tile.columns < 2 * columns) ?? smallest;
}

/**
 * One operand's tile: lines of octets along its contiguous axis. `along`: lines run along the inner axis, one for each
 * row (or column); else one line for each inner step. Loads into registers, so that they overlap with multiplying.
 * A lane keeps to one octet of every so many lines: its places are one number and multiples of another.
 */
function operand(
  name: "a" | "b",
  along: boolean,
  extent: number,
  tile: MatmulTile,
  lanes: number,
  scaled: boolean,
  from: number,
) {
  const line = (along ? tile.steps : extent) / 8;
  const stride = rowStride(line);
  const lines = along ? extent : tile.steps;
  const between = lanes / line;
  // Eight lanes store at once: of lines of four octets they take two that are four apart, or two of them would meet in a bank.
  const firstLine =
    line === 4 && between % 8 === 0 ? "lane / 32u * 8u + lane / 4u % 2u * 4u + lane / 8u % 4u" : `lane / ${line}u`;
  const count = Math.ceil(lines / between);
  const outer = name === "a" ? "rows" : "columns";
  const at = (k: number) => `${name}At + ${k}u * ${name}Jump`;
  const inTile = (k: number) => (lines % between === 0 ? "" : `${name}First + ${k * between}u < ${lines}u`);
  const inside = (k: number) =>
    along
      ? `${name}0 + ${name}First + ${k * between}u < P.${outer} && at + 8u * ${name}Octet < P.inner`
      : `at + ${name}First + ${k * between}u < P.inner && ${name}0 + 8u * ${name}Octet < P.${outer}`;
  const guarded = (condition: string, text: string) => (condition ? `if (${condition}) { ${text} }` : text);
  const value = (k: number) => (scaled ? `as_halves(${name}_${k}, ${name}Factor)` : `${name}_${k}`);
  return {
    stride,
    size: lines * stride,
    start: `
let ${name}Octet = lane % ${line}u;
let ${name}First = ${firstLine};
let ${name}Jump = ${between}u * ${name}Line;
let ${name}Place = ${name}First * ${stride}u + ${name}Octet;
var ${name}At = ${name}Origin + ${along ? `(${name}0 + ${name}First) * ${name}Line` : `${name}First * ${name}Line + ${name}0 / 8u`} + ${name}Octet;
${each(count, (k) => `var ${name}_${k} = vec4u(0);`)}`,
    advance: `${name}At += ${along ? `${tile.steps / 8}u` : `${tile.steps}u * ${name}Line`};`,
    load: each(count, (k) => guarded(inTile(k), `${name}_${k} = load4_${name}(${at(k)});`)),
    loadAtEdge: each(
      count,
      (k) =>
        `${name}_${k} = vec4u(0); ${guarded([inTile(k), inside(k)].filter(Boolean).join(" && "), `${name}_${k} = load4_${name}(${at(k)});`)}`,
    ),
    store: each(count, (k) =>
      guarded(inTile(k), `tiles[${name}Place + ${from + k * between * stride}u] = ${value(k)};`),
    ),
  };
}

/** What a product on matrix units is made for. */
export interface MatmulLayout {
  /** Whether the inner axis is the contiguous one. */
  aAlong: boolean;
  bAlong: boolean;
  /** bf16 operands: brought into f16's range by powers of two, which aLargest and bLargest [1] f32 tell. */
  scaled: boolean;
  out: DType;
}

/**
 * The product on matrix units: tiles of a and b as f16 in workgroup memory, sums in f32. While one pair of tiles is
 * multiplied, the next is on its way into registers. What is computed for each result (scale, rounding, bounds) goes
 * through a strip of workgroup memory, since elements of a matrix cannot be reached one by one.
 */
function text(units: Matrices, tile: MatmulTile, { aAlong, bAlong, scaled, out }: MatmulLayout): string {
  const { rows, columns, steps, down, across } = tile;
  const { M, subgroupSize } = units;
  const lanes = down * across * subgroupSize;
  const own = rows / (down * M);
  const ownColumns = columns / across;
  const strip = stripColumns(tile);
  const matricesAcross = columnMatrices(ownColumns, units);
  const a = operand("a", aAlong, rows, tile, lanes, scaled, 0);
  const b = operand("b", bAlong, columns, tile, lanes, scaled, a.size);
  // Odd, so that the rows of a matrix begin in different banks.
  const stripLine = rowStride(strip / 4);
  const stripQuads = M * stripLine;
  const left = (i: number) =>
    aAlong
      ? `subgroupMatrixLoad<Left, row_major>(&tiles, (ownRow + ${i * M}u) * ${a.stride}u + step / 8u, ${a.stride}u)`
      : `subgroupMatrixLoad<Left, col_major>(&tiles, step * ${a.stride}u + ownRow / 8u + ${(i * M) / 8}u, ${a.stride}u)`;
  const right = ({ octet, width }: { octet: number; width: number }) =>
    bAlong
      ? `subgroupMatrixLoad<Right${width}, col_major>(&tiles, ${a.size}u + (ownColumn + ${octet * 8}u) * ${b.stride}u + step / 8u, ${b.stride}u)`
      : `subgroupMatrixLoad<Right${width}, row_major>(&tiles, ${a.size}u + step * ${b.stride}u + ownColumn / 8u + ${octet}u, ${b.stride}u)`;
  const pieces = Array.from({ length: ownColumns / strip }, (_, k) => k);
  return `${matrices(units)}
// Tiles of a and b, and at the end strips of results.
var<workgroup> tiles: array<vec4u, ${Math.max(a.size + b.size, down * across * stripQuads)}>;

// The power of two that brings a tensor's largest value near 2^14: bf16 reaches further than f16 on both sides.
fn factor_for(largest: u32) -> f32 {
  let exponent = clamp(i32(largest >> 23u), 1, 254);
  return bitcast<f32>(u32(clamp(127 + 14 + 127 - exponent, 1, 254)) << 23u);
}
fn two_halves(word: u32, factor: f32) -> u32 {
  return bitcast<u32>(vec2<f16>(factor * vec2f(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u))));
}
fn as_halves(words: vec4u, factor: f32) -> vec4u {
  return vec4u(two_halves(words.x, factor), two_halves(words.y, factor), two_halves(words.z, factor), two_halves(words.w, factor));
}

@compute @workgroup_size(${lanes})
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  let a0 = id.y * ${rows}u;
  let b0 = id.x * ${columns}u;
  let aOrigin = place_a(id.z) / 8u;
  let bOrigin = place_b(id.z) / 8u;
  let aLine = P.aLine / 8u;
  let bLine = P.bLine / 8u;
  let group = lane / SUBGROUP;
  let ownRow = (group / ${across}u) * ${rows / down}u;
  let ownColumn = (group % ${across}u) * ${ownColumns}u;
  var aFactor = 1.0;
  var bFactor = 1.0;
  ${scaled ? "aFactor = factor_for(bitcast<u32>(load_aLargest(0u))); bFactor = factor_for(bitcast<u32>(load_bLargest(0u)));" : ""}
  ${declareSums(own, matricesAcross)}
  ${a.start}
  ${b.start}
  // A tile within all bounds needs no checks; which it is, all of a workgroup agree on.
  let within = a0 + ${rows}u <= P.rows && b0 + ${columns}u <= P.columns && P.inner % ${steps}u == 0u;
  var at = 0u;
  if (within) {
    ${a.load}
    ${b.load}
  } else {
    ${a.loadAtEdge}
    ${b.loadAtEdge}
  }
  loop {
    workgroupBarrier();
    ${a.store}
    ${b.store}
    workgroupBarrier();
    at += ${steps}u;
    ${a.advance}
    ${b.advance}
    if (at < P.inner) {
      if (within) {
        ${a.load}
        ${b.load}
      } else {
        ${a.loadAtEdge}
        ${b.loadAtEdge}
      }
    }
    ${eachStep(steps, units, multiplyAdd(own, matricesAcross, left, right))}
    if (at >= P.inner) { break; }
  }
  let strip0 = group * ${stripQuads}u;
  ${each(own, (i) =>
    pieces
      .map(
        (piece) => `
  workgroupBarrier();
  ${matricesAcross
    .map(({ octet }, j) =>
      Math.floor((octet * 8) / strip) === piece
        ? `subgroupMatrixStore<row_major>(&tiles, strip0 + ${(octet * 8 - piece * strip) / 4}u, sum_${i}_${j}, ${stripLine}u);`
        : "",
    )
    .join("\n")}
  workgroupBarrier();
  for (var n = lane % SUBGROUP; n < ${(M * strip) / 8}u; n += SUBGROUP) {
    let row = a0 + ownRow + ${i * M}u + n / ${strip / 8}u;
    let column = b0 + ownColumn + ${piece * strip}u + 8u * (n % ${strip / 8}u);
    if (row < P.rows && column < P.columns) { store_strip(((id.z * P.rows + row) * P.columns + column) / 8u, strip0 + n / ${strip / 8}u * ${stripLine}u + 2u * (n % ${strip / 8}u), aFactor, bFactor); }
  }`,
      )
      .join("\n"),
  )}
}

fn results(at: u32, aFactor: f32, bFactor: f32) -> vec4f {
  // Twice, since the product of both powers may leave the range of f32.
  ${scaled ? "return bitcast<vec4f>(tiles[at]) / aFactor / bFactor;" : "return bitcast<vec4f>(tiles[at]);"}
}
fn store_strip(to: u32, strip: u32, aFactor: f32, bFactor: f32) {
  let low = results(strip, aFactor, bFactor);
  let high = results(strip + 1u, aFactor, bFactor);
  ${
    out === "f32"
      ? "store4_out(2u * to, bitcast<vec4u>(low)); store4_out(2u * to + 1u, bitcast<vec4u>(high));"
      : `store4_out(to, vec4u(word_of(low.xy), word_of(low.zw), word_of(high.xy), word_of(high.zw)));`
  }
}
${out === "f16" ? "fn word_of(two: vec2f) -> u32 { return bitcast<u32>(vec2<f16>(two)); }" : ""}
${out === "bf16" ? "fn word_of(two: vec2f) -> u32 { return bits_bf16(two.x) | (bits_bf16(two.y) << 16u); }" : ""}`;
}

/** The parts of matmul's kernel that make it one for matrix units; `aLine`, `bLine`: elements from line to line. */
export function matrixUnitsKernel(
  units: Matrices,
  tile: MatmulTile,
  layout: MatmulLayout,
): Pick<KernelSource, "constants" | "tensors" | "body"> {
  const largest = { dtype: "f32", access: "read" } as const;
  return {
    constants: {
      ...matrixConstants(units),
      ...tile,
      A_ALONG: layout.aAlong,
      B_ALONG: layout.bAlong,
      SCALED: layout.scaled,
    },
    tensors: layout.scaled ? { aLargest: largest, bLargest: largest } : {},
    body: () => text(units, tile, layout),
  };
}
