import { webgpuDevice } from "../../../devices/webgpu/device.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SequencePlan } from "../contract.js";
import { GROUP } from "./features.js";
import type { Levels } from "./levels.js";
import { chunkRows, type Packed } from "./pack.js";
import { MAKE_FEATURES, MATRICES, matricesConstants, type PowerTiles, rowStride } from "./tiles.js";

/**
 * Σ_t weight_t · φ(x_t) y_tᵀ over the tokens of a chunk: [features × tokens] by [tokens × columns]. Features are made in
 * workgroup memory, token by token, and read from there transposed.
 */
const body = `${MATRICES}
const LANES = DOWN * ACROSS * SUBGROUP;
const PHI_STRIDE = GROUPS * 8 + 1;
const OWN_DOWN = GROUPS * 64 / (DOWN * MATRIX_M);
const OWN_ACROSS = (COLUMNS / MATRIX_N + ACROSS - 1) / ACROSS;
var<workgroup> phi: array<vec4u, STEPS * PHI_STRIDE>;
var<workgroup> values: array<vec4u, STEPS * Y_STRIDE>;
${MAKE_FEATURES}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let state = id.y + id.z * groups.y; // counts b, key head, chunk
  if (state >= P.states) { return; }
  let chunk = state % P.chunks;
  let line = state / P.chunks;
  let down = (lane / SUBGROUP) / ACROSS;
  let across = (lane / SUBGROUP) % ACROSS;
  var sums: array<Result, OWN_DOWN * OWN_ACROSS>;
  for (var member = 0u; member < P.members; member++) {
    let row0 = ((line * P.members + member) * P.chunks + chunk) * CHUNK_ROWS;
    for (var base = 0u; base < CHUNK_ROWS; base += STEPS) {
      workgroupBarrier();
      for (var n = lane; n < STEPS * GROUPS; n += LANES) {
        let token = n % STEPS;
        let group = n / STEPS;
        let row = row0 + base + token;
        make_group(row, f16(exp2(FEATURE_EXPONENT) * load_tokens(4u * row + 3u)), id.x * GROUPS + group, token * PHI_STRIDE + 8u * group);
      }
      for (var n = lane; n < STEPS * Y_OCTETS; n += LANES) {
        values[(n / Y_OCTETS) * Y_STRIDE + n % Y_OCTETS] = load4_y((row0 + base) * Y_OCTETS + n);
      }
      workgroupBarrier();
      for (var step = 0u; step < STEPS; step += MATRIX_K) {
        var right: array<Right, OWN_ACROSS>;
        for (var j = 0u; j < OWN_ACROSS; j++) {
          right[j] = subgroupMatrixLoad<Right, row_major>(&values, step * Y_STRIDE + (across * OWN_ACROSS + j) * MATRIX_N / 8u, Y_STRIDE);
        }
        for (var i = 0u; i < OWN_DOWN; i++) {
          let left = subgroupMatrixLoad<Left, col_major>(&phi, step * PHI_STRIDE + (down * OWN_DOWN + i) * MATRIX_M / 8u, PHI_STRIDE);
          for (var j = 0u; j < OWN_ACROSS; j++) {
            sums[i * OWN_ACROSS + j] = subgroupMatrixMultiplyAccumulate(left, right[j], sums[i * OWN_ACROSS + j]);
          }
        }
      }
    }
  }
  for (var i = 0u; i < OWN_DOWN; i++) {
    let feature = id.x * GROUPS * 64u + (down * OWN_DOWN + i) * MATRIX_M;
    for (var j = 0u; j < OWN_ACROSS; j++) {
      let at = P.s_at + (state * P.features + feature) * COLUMNS + (across * OWN_ACROSS + j) * MATRIX_N;
      subgroupMatrixStore<row_major>(&s, at, sums[i * OWN_ACROSS + j], COLUMNS);
    }
  }
}`;

/**
 * Sums of the features of x, keys or queries, with packed y beside them: f32 [B, H, N, features, columns], without the
 * powers of two that `levels` and y's exponents hold, and unweighted by multiplicity.
 */
export function accumulate(
  plan: SequencePlan,
  tiles: PowerTiles,
  x: Packed,
  y: Packed,
  { tokens }: Levels,
  octets: Tensor,
): Tensor {
  const { batch, heads, chunks, degree } = plan;
  const device = webgpuDevice(x.values);
  const { groups, steps, down, across } = tiles.accumulate;
  const columns = y.octets * 8;
  const features = octets.size * 8;
  const states = batch * heads * chunks;
  const source: KernelSource = {
    name: "accumulate-on-matrix-units",
    constants: {
      ...matricesConstants(tiles),
      DEGREE: degree,
      X_OCTETS: x.octets,
      Y_OCTETS: y.octets,
      Y_STRIDE: rowStride(y.octets),
      COLUMNS: columns,
      CHUNK_ROWS: chunkRows(plan),
      STEPS: steps,
      GROUPS: groups,
      DOWN: down,
      ACROSS: across,
    },
    tensors: {
      x: { dtype: "f16", access: "read", vectors: true },
      y: { dtype: "f16", access: "read", vectors: true },
      tokens: { dtype: "f32", access: "read" },
      octets: { dtype: "i32", access: "read" },
      s: { dtype: "f32", access: "write" },
    },
    parameters: { states: "u32", chunks: "u32", members: "u32", features: "u32" },
    body,
  };
  const s = empty([batch, heads, chunks, features, columns], device, "f32");
  device.dispatch(source, {
    tensors: { x: x.values, y: y.values, tokens, octets, s },
    parameters: { states, chunks, members: x.values.shape[0] / (states * chunkRows(plan)), features },
    workgroups: [features / (groups * GROUP), ...device.spread(states)],
  });
  return s;
}
