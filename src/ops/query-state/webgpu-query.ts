import { webgpuDevice } from "../../devices/webgpu/device.js";
import { each } from "../../devices/webgpu/each.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { multiplyTiles, TILES, tilesOfRows } from "../../devices/webgpu/tiles.js";
import type { Tensor } from "../../tensor/tensor.js";
import { MONOMIALS, monomialTable } from "../feature-map/webgpu-monomials.js";
import type { SequencePlan } from "../power-attention/contract.js";
import { absent } from "../power-attention/webgpu-gates.js";
import { SQUARE_GRADIENT } from "./webgpu-square-gradient.js";
import { TILE_OF_TOKENS, WEIGHTS } from "./webgpu-tokens.js";

/** Which vectors read a state: queries, weighted scale^p · exp(G_t), or keys, weighted exp(G_end − G_t). */
export type Side = "queries" | "keys";

/**
 * result_t = weight_t · φ(x_t)ᵀ s and sum_t = weight_t · φ(x_t)·z with the state of t's chunk: [tokens × features] by
 * [features × e], left tiles made as needed.
 */
const queryBody = (rowTiles: 1 | 2, degree: number) => {
  const both = (text: (k: number) => string) => each(rowTiles, text);
  // At degree 4 one long f32 sum of terms of either sign would lose a digit: there runs of 256 features are summed up apart.
  const inRuns = degree > 2;
  return `${MONOMIALS}
const ROWS = ${rowTiles}u * TILE;

// What is written of tokens row0 …: results, rows 4 down … and columns across, across + 16, … of them, and sums of rows 4 down ….
fn write(results: array<vec4f, 4>, down: u32, across: u32, row0: u32, end: u32, column0: u32, id: vec3u) {
  let gate0 = (id.z * P.heads + id.y / P.members) * P.time;
  for (var i = 0u; i < 4u; i++) {
    let row = row0 + 4u * down + i;
    if (row >= end) { break; }
    let weight = weight_of(gate0, row, end);
    let at = (id.z * P.time + row) * P.heads * P.members + id.y;
    for (var j = 0u; j < 4u; j++) {
      let column = column0 + across + 16u * j;
      if (column >= P.valueDim) { break; }
      let to = at * P.valueDim + column;
      let value = weight * results[j][i];
      if (P.accumulate == 1u) { store_result(to, load_result(to) + value); }
      else { store_result(to, value); }
    }
  }
}
fn write_sums(sums: vec4f, down: u32, row0: u32, end: u32, id: vec3u) {
  let gate0 = (id.z * P.heads + id.y / P.members) * P.time;
  for (var i = 0u; i < 4u; i++) {
    let row = row0 + 4u * down + i;
    if (row >= end) { break; }
    let at = (id.z * P.time + row) * P.heads * P.members + id.y;
    let value = weight_of(gate0, row, end) * sums[i];
    if (P.accumulate == 1u) { store_rowSum(at, load_rowSum(at) + value); }
    else { store_rowSum(at, value); }
  }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  let r = lane & 15u;
  let c = lane >> 4u;
  let b = id.z;
  let head = id.y / P.members;
  let columnTiles = (P.valueDim + TILE - 1u) / TILE;
  let column0 = (id.x % columnTiles) * TILE;
  let tile = id.x / columnTiles;
  let tilesPerChunk = (P.chunkSize + ROWS - 1u) / ROWS;
  let chunk = tile / tilesPerChunk;
  let start = chunk * P.chunkSize;
  let end = min(start + P.chunkSize, P.time);
  let row0 = start + (tile % tilesPerChunk) * ROWS;
  if (row0 >= end) { return; }
  let state = (b * P.chunks + chunk) * P.heads + head;

  // Lane (r, c) fills feature r of rows 4c … on the left, and feature c of columns r, r + 16, … on the right; it keeps rows 4c …
  // and columns r, …, so that lanes side by side read and write what lies side by side.
  ${both(
    (k) => `var origin_${k}: vec4u;
  for (var j = 0u; j < 4u; j++) { origin_${k}[j] = b * P.xB + min(row0 + ${64 * k}u + 4u * c + j, end - 1u) * P.xT + id.y * P.xH; }
  var run_${k} = array<vec4f, 4>();
  ${inRuns ? `var total_${k} = array<vec4f, 4>();` : ""}
  var sum_${k} = vec4f(0);`,
  )}
  for (var base = 0u; base < P.features; base += STEP) {
    ${inRuns ? `if ((base & 255u) == 0u) { for (var j = 0u; j < 4u; j++) { ${both((k) => `total_${k}[j] += run_${k}[j]; run_${k}[j] = vec4f(0);`)} } }` : ""}
    let own = monomial(base + r);
    ${both((k) => `var phi_${k} = vec4f(own.root);`)}
    for (var k = 0u; k < DEGREE; k++) {
      let i = factor(own, k);
      ${both(
        (k) =>
          `phi_${k} *= vec4f(load_x(origin_${k}.x + i), load_x(origin_${k}.y + i), load_x(origin_${k}.z + i), load_x(origin_${k}.w + i));`,
      )}
    }
    var s = vec4f(0);
    if (base + c < P.features) {
      for (var j = 0u; j < 4u; j++) {
        let i = column0 + r + 16u * j;
        if (i < P.valueDim) { s[j] = load_s((state * P.features + base + c) * P.valueDim + i); }
      }
    }
    if (SUM && base + r < P.features) {
      let z = load_z(state * P.features + base + r);
      ${both((k) => `sum_${k} += phi_${k} * z;`)}
    }
    workgroupBarrier();
    ${both((k) => `left[${256 * k}u + slot(r, c)] = phi_${k};`)}
    right[slot(c, r)] = s;
    workgroupBarrier();
    ${multiplyTiles(rowTiles, "run")}
  }
  ${both(
    (k) => `${inRuns ? `for (var j = 0u; j < 4u; j++) { run_${k}[j] += total_${k}[j]; }` : ""}
  write(run_${k}, c, r, row0 + ${64 * k}u, end, column0, id);
  if (SUM) {
    let sums = sum_lanes(sum_${k}, r, c);
    if (r == 0u && column0 == 0u) { write_sums(sums, c, row0 + ${64 * k}u, end, id); }
  }`,
  )}
}`;
};

/**
 * The gradient of x: dφ_t = weight_t · (s y_t + z ysum_t), contracted with ∂φ/∂x. A product of [tokens × e] by
 * [e × features], of which 64 × 64 at a time are scattered to the indices of their monomials: each of four lanes of a
 * token owns every fourth element of dx, so no two write the same one.
 */
const gradientBody = `${MONOMIALS}
// Where workgroup memory has room: dx, and the tokens themselves, element first.
var<workgroup> dx: array<f32, select(1, ROOM * 64, KEEP_DX)>;
var<workgroup> tokens: array<f32, select(1, ROOM * 64, KEEP_X)>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  ${TILE_OF_TOKENS}
  let state = (b * P.chunks + chunk) * P.heads + head;
  let gate0 = (b * P.heads + head) * P.time;

  // Scattering: this lane's token, and which elements of its dx it owns.
  let token = lane & 63u;
  let quarter = lane >> 6u;
  let t = min(row0 + token, end - 1u);
  let x0 = b * P.xB + t * P.xT + id.y * P.xH;
  let result0 = ((b * P.time + t) * P.heads * P.members + id.y) * P.headDim;
  let alive = row0 + token < end;
  for (var i = quarter; i < P.headDim; i += 4u) {
    if (KEEP_X) { tokens[i * 64u + token] = load_x(x0 + i); }
    if (KEEP_DX) { dx[i * 64u + token] = 0.0; }
    else if (P.accumulate == 0u && alive) { store_result(result0 + i, 0.0); }
  }

  var scalars = vec4f(1);
  for (var i = 0u; i < 4u; i++) {
    let row = min(row0 + 4u * r + i, end - 1u);
    if (!KEYS) { scalars[i] = load_ysum((b * P.time + row) * P.heads * P.members + id.y); }
    scalars[i] *= weight_of(gate0, row, end);
  }
  var weights: vec4f;
  for (var j = 0u; j < 4u; j++) { weights[j] = weight_of(gate0, min(row0 + 4u * c + j, end - 1u), end); }

  for (var feature0 = 0u; feature0 < P.features; feature0 += TILE) {
    var acc = array<vec4f, 4>();
    for (var at = 0u; at < P.valueDim; at += STEP) {
      var y = vec4f(0);
      var s = vec4f(0);
      if (at + r < P.valueDim) {
        for (var j = 0u; j < 4u; j++) {
          let row = row0 + 4u * c + j;
          if (row < end) { y[j] = weights[j] * load_y(b * P.yB + row * P.yT + id.y * P.yH + at + r); }
          let feature = feature0 + 4u * c + j;
          if (feature < P.features) { s[j] = load_s((state * P.features + feature) * P.valueDim + at + r); }
        }
      }
      workgroupBarrier();
      left[slot(r, c)] = y;
      right[slot(r, c)] = s;
      workgroupBarrier();
      multiply(&acc, r, c);
    }
    for (var j = 0u; j < 4u; j++) {
      let feature = feature0 + 4u * c + j;
      if (feature < P.features) { acc[j] += scalars * load_z(state * P.features + feature); }
    }
    for (var part = 0u; part < 4u; part++) {
      workgroupBarrier();
      if (c / 4u == part) {
        for (var j = 0u; j < 4u; j++) { left[slot(4u * (c & 3u) + j, r)] = acc[j]; }
      }
      workgroupBarrier();
      for (var step = 0u; step < STEP; step++) {
        let m = monomial(feature0 + part * STEP + step);
        let dphi = m.root * left[slot(step, token / 4u)][token & 3u];
        for (var k = 0u; k < DEGREE; k++) {
          let i = factor(m, k);
          if ((i & 3u) != quarter) { continue; }
          var change = dphi;
          for (var other = 0u; other < DEGREE; other++) {
            if (other == k) { continue; }
            if (KEEP_X) { change *= tokens[factor(m, other) * 64u + token]; }
            else { change *= load_x(x0 + factor(m, other)); }
          }
          if (KEEP_DX) { dx[i * 64u + token] += change; }
          else if (alive && m.root > 0.0) { store_result(result0 + i, load_result(result0 + i) + change); }
        }
      }
    }
  }
  if (KEEP_DX && alive) {
    for (var i = quarter; i < P.headDim; i += 4u) {
      var value = dx[i * 64u + token];
      if (P.accumulate == 1u) { value += load_result(result0 + i); }
      store_result(result0 + i, value);
    }
  }
}`;

const PARAMETERS = {
  time: "u32",
  heads: "u32",
  chunkSize: "u32",
  chunks: "u32",
  headDim: "u32",
  valueDim: "u32",
  features: "u32",
  members: "u32",
  accumulate: "u32",
  factor: "f32",
  xB: "u32",
  xT: "u32",
  xH: "u32",
} as const;

function shared(plan: SequencePlan, side: Side, x: Tensor, accumulate: boolean) {
  const { time, queryHeads, heads, headDim, valueDim, degree, chunkSize, chunks, expandedDim } = plan;
  const [xB, xT, xH] = x.strides;
  const xHeads = side === "keys" ? heads : queryHeads;
  return {
    constants: {
      DEGREE: degree,
      KEYS: side === "keys",
      GATED: plan.gated,
    },
    parameters: {
      time,
      heads,
      chunkSize,
      chunks,
      headDim,
      valueDim,
      features: expandedDim,
      members: xHeads / heads,
      accumulate: accumulate ? 1 : 0,
      factor: side === "keys" ? 1 : plan.scale ** degree,
      xB,
      xT,
      xH,
    },
    xHeads,
  };
}

/** Writes, or adds with `accumulate`: result [B, T, heads of x, e] and, where given, rowSum [B, T, heads of x]; f32. */
export function readState(
  plan: SequencePlan,
  side: Side,
  x: Tensor,
  states: { s: Tensor; z: Tensor },
  gates: Tensor,
  result: Tensor,
  rowSum: Tensor | undefined,
  accumulate: boolean,
): void {
  const device = webgpuDevice(x);
  const { constants, parameters, xHeads } = shared(plan, side, x, accumulate);
  const rowTiles = plan.chunkSize > 64 && plan.degree <= 2 ? 2 : 1;
  const tiles = plan.chunks * Math.ceil(plan.chunkSize / (64 * rowTiles));
  const unused = rowSum
    ? ""
    : "fn load_rowSum(i: u32) -> f32 { return 0.0; }\nfn store_rowSum(i: u32, value: f32) {}\n";
  const source: KernelSource = {
    name: "read-state",
    constants: { ...constants, SUM: rowSum !== undefined, ROW_TILES: rowTiles },
    tensors: {
      x: { dtype: x.dtype, access: "read" },
      s: { dtype: "f32", access: "read" },
      z: { dtype: "f32", access: "read" },
      gates: { dtype: "f32", access: "read" },
      monomials: { dtype: "i32", access: "read" },
      result: { dtype: "f32", access: "write" },
      ...(rowSum && { rowSum: { dtype: "f32", access: "write" } as const }),
    },
    parameters: PARAMETERS,
    body: () => unused + tilesOfRows(rowTiles) + WEIGHTS + queryBody(rowTiles, plan.degree),
  };
  device.dispatch(source, {
    tensors: {
      x,
      ...states,
      gates,
      monomials: monomialTable(x, plan.headDim, plan.degree),
      result,
      ...(rowSum && { rowSum }),
    },
    parameters,
    workgroups: [tiles * Math.ceil(plan.valueDim / 64), xHeads, plan.batch],
  });
}

/**
 * Writes, or adds with `accumulate`, dx [B, T, heads of x, d] f32 for x that met `states` as in `readState` (queries,
 * y = dy, ysum = dsum) or made them as in accumulateFeatures (keys, y = v, ysum 1, states = their gradients).
 */
export function stateGradient(
  plan: SequencePlan,
  side: Side,
  x: Tensor,
  y: Tensor,
  ysum: Tensor | undefined,
  states: { s: Tensor; z: Tensor },
  gates: Tensor,
  dx: Tensor,
  accumulate: boolean,
): void {
  const device = webgpuDevice(x);
  const { constants, parameters, xHeads } = shared(plan, side, x, accumulate);
  const square = plan.degree === 2;
  const room = device.gpu.limits.maxComputeWorkgroupStorageSize - 8192;
  // Few sizes, so that head dims share kernels.
  const dims = Math.max(16, 2 ** Math.ceil(Math.log2(plan.headDim)));
  const tokens = 256 * dims;
  const [yB, yT, yH] = y.strides;
  const kept = { ROOM: dims, KEEP_DX: tokens + 4 <= room, KEEP_X: 2 * tokens <= room };
  const source: KernelSource = {
    name: "state-gradient",
    constants: { ...constants, ...(square ? {} : kept) },
    tensors: {
      x: { dtype: x.dtype, access: "read" },
      y: { dtype: y.dtype, access: "read" },
      ysum: { dtype: "f32", access: "read" },
      s: { dtype: "f32", access: "read" },
      z: { dtype: "f32", access: "read" },
      gates: { dtype: "f32", access: "read" },
      ...(square ? {} : { monomials: { dtype: "i32", access: "read" } as const }),
      result: { dtype: "f32", access: "write" },
    },
    parameters: { ...PARAMETERS, yB: "u32", yT: "u32", yH: "u32" },
    body: () => TILES + WEIGHTS + (square ? SQUARE_GRADIENT : gradientBody),
  };
  device.dispatch(source, {
    tensors: {
      x,
      y,
      ysum: ysum ?? absent(x),
      ...states,
      gates,
      ...(square ? {} : { monomials: monomialTable(x, plan.headDim, plan.degree) }),
      result: dx,
    },
    parameters: { ...parameters, yB, yT, yH },
    workgroups: [plan.chunks * Math.ceil(plan.chunkSize / 64), xHeads, plan.batch],
  });
}
