import type { KernelSource } from "../../devices/webgpu/kernel.js";
import {
  MATRIX_DIRECTIVES,
  type MatrixTile,
  type MatrixUnits,
  matrixConstants,
} from "../../devices/webgpu/matrix-units.js";

/**
 * The product on matrix units: tiles of a and b as f16 in workgroup memory, sums in f32. What is computed for each
 * element (scale, rounding, bounds) goes through a small block of workgroup memory, one matrix of each subgroup at a time.
 */
const body = `${MATRIX_DIRECTIVES}
alias Left = subgroup_matrix_left<f16, MATRIX_K, MATRIX_M>;
alias Right = subgroup_matrix_right<f16, MATRIX_N, MATRIX_K>;
alias Result = subgroup_matrix_result<f32, MATRIX_N, MATRIX_M>;

const LANES = DOWN * ACROSS * SUBGROUP;
const A_STRIDE = STEPS + GAP;
const B_STRIDE = COLUMNS + GAP;
// Matrices of a subgroup, down and across.
const OWN_DOWN = ROWS / (DOWN * MATRIX_M);
const OWN_ACROSS = COLUMNS / (ACROSS * MATRIX_N);
var<workgroup> a_tile: array<f16, ROWS * A_STRIDE>;
var<workgroup> b_tile: array<f16, STEPS * B_STRIDE>;
var<workgroup> scratch: array<f32, DOWN * ACROSS * MATRIX_M * MATRIX_N>;

// The power of two that brings a tensor's largest value near 2^14: bf16 reaches further than f16 on both sides.
fn factor_for(largest: u32) -> f32 {
  let exponent = clamp(i32(largest >> 23u), 1, 254);
  return bitcast<f32>(u32(clamp(127 + 14 + 127 - exponent, 1, 254)) << 23u);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row0 = id.y * ROWS;
  let column0 = id.x * COLUMNS;
  let a0 = place_a(id.z);
  let b0 = place_b(id.z);
  let group = lane / SUBGROUP;
  let down = group / ACROSS;
  let across = group % ACROSS;
  var aFactor = 1.0;
  var bFactor = 1.0;
  if (SCALED) {
    aFactor = factor_for(bitcast<u32>(load_aLargest(0u)));
    bFactor = factor_for(bitcast<u32>(load_bLargest(0u)));
  }

  var acc: array<Result, OWN_DOWN * OWN_ACROSS>;
  for (var at = 0u; at < P.inner; at += STEPS) {
    workgroupBarrier();
    for (var n = lane; n < ROWS * STEPS; n += LANES) {
      // Lanes next to each other read elements next to each other: along the inner axis, or across it.
      let row = select(n / STEPS, n % ROWS, A_ACROSS);
      let step = select(n % STEPS, n / ROWS, A_ACROSS);
      var value = 0.0;
      if (row0 + row < P.rows && at + step < P.inner) {
        value = load_a(a0 + (row0 + row) * P.aRow + (at + step) * P.aInner);
      }
      a_tile[row * A_STRIDE + step] = f16(aFactor * value);
    }
    for (var n = lane; n < STEPS * COLUMNS; n += LANES) {
      let column = select(n / STEPS, n % COLUMNS, B_ACROSS);
      let step = select(n % STEPS, n / COLUMNS, B_ACROSS);
      var value = 0.0;
      if (column0 + column < P.columns && at + step < P.inner) {
        value = load_b(b0 + (column0 + column) * P.bColumn + (at + step) * P.bInner);
      }
      b_tile[step * B_STRIDE + column] = f16(bFactor * value);
    }
    workgroupBarrier();
    for (var step = 0u; step < STEPS; step += MATRIX_K) {
      var left: array<Left, OWN_DOWN>;
      for (var i = 0u; i < OWN_DOWN; i++) {
        left[i] = subgroupMatrixLoad<Left, row_major>(&a_tile, ((down * OWN_DOWN + i) * MATRIX_M) * A_STRIDE + step, A_STRIDE);
      }
      for (var j = 0u; j < OWN_ACROSS; j++) {
        let right = subgroupMatrixLoad<Right, row_major>(&b_tile, step * B_STRIDE + (across * OWN_ACROSS + j) * MATRIX_N, B_STRIDE);
        for (var i = 0u; i < OWN_DOWN; i++) {
          acc[i * OWN_ACROSS + j] = subgroupMatrixMultiplyAccumulate(left[i], right, acc[i * OWN_ACROSS + j]);
        }
      }
    }
  }

  let scratch0 = group * MATRIX_M * MATRIX_N;
  for (var i = 0u; i < OWN_DOWN; i++) {
    for (var j = 0u; j < OWN_ACROSS; j++) {
      workgroupBarrier();
      subgroupMatrixStore<row_major>(&scratch, scratch0, acc[i * OWN_ACROSS + j], MATRIX_N);
      workgroupBarrier();
      for (var n = 2u * (lane % SUBGROUP); n < MATRIX_M * MATRIX_N; n += 2u * SUBGROUP) {
        let row = row0 + (down * OWN_DOWN + i) * MATRIX_M + n / MATRIX_N;
        let column = column0 + (across * OWN_ACROSS + j) * MATRIX_N + n % MATRIX_N;
        if (row >= P.rows || column >= P.columns) { continue; }
        let to = (id.z * P.rows + row) * P.columns + column;
        // Twice, since the product of both powers may leave the range of f32.
        let x = scratch[scratch0 + n] / aFactor / bFactor;
        let y = scratch[scratch0 + n + 1u] / aFactor / bFactor;
        if (EVEN) { store2_out(to, x, y); }
        else {
          store_out(to, x);
          if (column + 1u < P.columns) { store_out(to + 1u, y); }
        }
      }
    }
  }
}`;

/** The parts of matmul's kernel that make it one for matrix units. `scaled` binds aLargest and bLargest, [1] f32. */
export function matrixUnitsKernel(
  units: MatrixUnits,
  tile: MatrixTile,
  scaled: boolean,
): Pick<KernelSource, "constants" | "tensors" | "body"> {
  const largest = { dtype: "f32", access: "read" } as const;
  return {
    constants: { ...matrixConstants(units, tile), SCALED: scaled },
    tensors: scaled ? { aLargest: largest, bLargest: largest } : {},
    body: scaled
      ? body
      : `${body}fn load_aLargest(i: u32) -> f32 { return 0.0; } fn load_bLargest(i: u32) -> f32 { return 0.0; }`,
  };
}
