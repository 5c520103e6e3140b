import { MATRIX_DIRECTIVES, type MatrixUnits } from "./matrix-units.js";
import { TILES } from "./tiles.js";

/**
 * The tile vocabulary over either body. A kernel fills tiles with `put_left(step, group, rows)` and `put_right(step,
 * group, columns)`, adds their product to `Sums` with `multiply_tiles`, and at the end asks for its own 4 × 4 values with
 * `own_sums`, in the places that tiles.ts describes; `flush_sums` moves them on early where that is possible. Between filling and multiplying it puts its barriers.
 */
export interface TileBody {
  directives: string;
  text: string;
  constants: Record<string, number>;
}

const PORTABLE = `${TILES}
alias Sums = array<vec4f, 4>;
fn put_left(step: u32, group: u32, value: vec4f) { left[slot(step, group)] = value; }
fn put_right(step: u32, group: u32, value: vec4f) { right[slot(step, group)] = value; }
fn multiply_tiles(sums: ptr<function, Sums>, lane: u32) { multiply(sums, lane & 15u, lane >> 4u); }
fn own_sums(sums: ptr<function, Sums>, lane: u32) -> array<vec4f, 4> { return *sums; }
fn flush_sums(sums: ptr<function, Sums>, total: ptr<function, array<vec4f, 4>>) {
  for (var j = 0u; j < 4u; j++) {
    (*total)[j] += (*sums)[j];
    (*sums)[j] = vec4f(0);
  }
}
`;

/** f16 tiles and f32 sums: what is put must be in f16's range, which is the kernel's to see to (see RANGES). */
const ON_MATRIX_UNITS = `
const TILE = 64u;
const STEP = 16u;
alias Left = subgroup_matrix_left<f16, MATRIX_K, MATRIX_M>;
alias Right = subgroup_matrix_right<f16, MATRIX_N, MATRIX_K>;
alias Result = subgroup_matrix_result<f32, MATRIX_N, MATRIX_M>;
const ACROSS = 64 / MATRIX_N;
// Matrices of a subgroup: neighbours in one row of matrices.
const OWN = (64 / MATRIX_M) * ACROSS * SUBGROUP / 256;
const STRIDE = 72;
alias Sums = array<Result, OWN>;
var<workgroup> left_halves: array<f16, 16 * STRIDE>;
var<workgroup> right_halves: array<f16, 16 * STRIDE>;
var<workgroup> scratch: array<f32, 4096>;

fn put_left(step: u32, group: u32, value: vec4f) {
  for (var j = 0u; j < 4u; j++) { left_halves[step * STRIDE + 4u * group + j] = f16(value[j]); }
}
fn put_right(step: u32, group: u32, value: vec4f) {
  for (var j = 0u; j < 4u; j++) { right_halves[step * STRIDE + 4u * group + j] = f16(value[j]); }
}
fn multiply_tiles(sums: ptr<function, Sums>, lane: u32) {
  let first = (lane / SUBGROUP) * OWN;
  let row = (first / ACROSS) * MATRIX_M;
  for (var step = 0u; step < STEP; step += MATRIX_K) {
    let a = subgroupMatrixLoad<Left, col_major>(&left_halves, step * STRIDE + row, STRIDE);
    for (var n = 0u; n < OWN; n++) {
      let column = ((first + n) % ACROSS) * MATRIX_N;
      let b = subgroupMatrixLoad<Right, row_major>(&right_halves, step * STRIDE + column, STRIDE);
      (*sums)[n] = subgroupMatrixMultiplyAccumulate(a, b, (*sums)[n]);
    }
  }
}
fn own_sums(sums: ptr<function, Sums>, lane: u32) -> array<vec4f, 4> {
  let first = (lane / SUBGROUP) * OWN;
  workgroupBarrier();
  for (var n = 0u; n < OWN; n++) {
    let place = ((first + n) / ACROSS) * MATRIX_M * TILE + ((first + n) % ACROSS) * MATRIX_N;
    subgroupMatrixStore<row_major>(&scratch, place, (*sums)[n], 64);
  }
  workgroupBarrier();
  var own = array<vec4f, 4>();
  for (var j = 0u; j < 4u; j++) {
    for (var i = 0u; i < 4u; i++) { own[j][i] = scratch[(4u * (lane & 15u) + i) * TILE + 4u * (lane >> 4u) + j]; }
  }
  workgroupBarrier();
  return own;
}
// Sums stay where they are: their elements are out of reach one by one.
fn flush_sums(sums: ptr<function, Sums>, total: ptr<function, array<vec4f, 4>>) {}
// The sum over the workgroup's 16 lanes with the same \`group\`, given to all of them.
fn sum_lanes(value: vec4f, lane: u32, group: u32) -> vec4f {
  workgroupBarrier();
  for (var j = 0u; j < 4u; j++) { scratch[(lane * 16u + group) * 4u + j] = value[j]; }
  workgroupBarrier();
  var total = vec4f(0);
  for (var k = 0u; k < 16u; k++) {
    for (var j = 0u; j < 4u; j++) { total[j] += scratch[(k * 16u + group) * 4u + j]; }
  }
  workgroupBarrier();
  return total;
}
`;

const MATRIX_TILES_BYTES = 2 * 2 * 16 * 72 + 4 * 4096;
/** Scales of both operands come on top of what portable kernels bind. */
const MATRIX_BINDINGS = 9;

/** Tiles on matrix units where their shape divides the tile and workgroup memory has room; else the portable ones. */
export function tileBody(units: MatrixUnits | undefined, limits: GPUSupportedLimits): TileBody {
  const portable = { directives: "", text: PORTABLE, constants: {} };
  const room = limits.maxComputeWorkgroupStorageSize >= MATRIX_TILES_BYTES;
  if (!units || !room || limits.maxStorageBuffersPerShaderStage < MATRIX_BINDINGS) return portable;
  const { M, N, K, subgroupSize } = units;
  const matrices = (64 / M) * (64 / N);
  const own = (matrices * subgroupSize) / 256;
  const fits = 64 % M === 0 && 64 % N === 0 && 16 % K === 0 && Number.isInteger(own) && own > 0 && (64 / N) % own === 0;
  if (!fits) return portable;
  return {
    directives: MATRIX_DIRECTIVES,
    text: ON_MATRIX_UNITS,
    constants: { MATRIX_M: M, MATRIX_N: N, MATRIX_K: K, SUBGROUP: subgroupSize },
  };
}

/** Powers of two that bring values of a largest magnitude near 1 and back: exact, so that only f16's digits matter. */
export const RANGES = `
fn power_of_two_for(largest: f32) -> f32 {
  let exponent = clamp(i32((bitcast<u32>(largest) >> 23u) & 255u), 1, 253);
  return bitcast<f32>(u32(254 - exponent) << 23u);
}
// φ(scale · x) is scale^p φ(x). One factor at a time: their product may leave the range of f32 where the result does not.
fn restore(value: f32, scale: f32) -> f32 {
  var restored = value;
  for (var k = 0u; k < DEGREE; k++) { restored /= scale; }
  return restored;
}
`;
