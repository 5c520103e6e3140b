import { webgpuDevice } from "../../devices/webgpu/device.js";
import { each } from "../../devices/webgpu/each.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { GATES, multiplyTiles, tilesOfRows } from "../../devices/webgpu/tiles.js";
import type { Tensor } from "../../tensor/tensor.js";
import { MONOMIALS, monomialTable } from "../feature-map/webgpu-monomials.js";
import type { SequencePlan } from "../power-attention/contract.js";

/**
 * Sums φ(x_t) y_tᵀ over the tokens of each chunk: a product of [features × tokens] by [tokens × e] whose left tiles are
 * made as they are needed. Two results come from it:
 *
 *     x          y     weight of token t           z
 *     keys       v     exp(G_end − G_t)            Σ weight φ          the chunk's state
 *     queries    dy    scale^p · exp(G_t)          Σ weight φ dsum_t   what the entering state receives
 */
const body = (rowTiles: 1 | 2) => {
  const both = (text: (k: number) => string) => each(rowTiles, text);
  return `${tilesOfRows(rowTiles)}${GATES}${MONOMIALS}
const ROWS = ${rowTiles}u * TILE;

// Features down, down + 16, … and columns across, across + 16, … of a tile; and sums of features.
fn write(results: array<vec4f, 4>, down: u32, across: u32, feature0: u32, column0: u32, state: u32) {
  for (var i = 0u; i < 4u; i++) {
    let feature = feature0 + down + 16u * i;
    if (feature >= P.features) { break; }
    for (var j = 0u; j < 4u; j++) {
      let column = column0 + across + 16u * j;
      if (column < P.valueDim) { store_s((state * P.features + feature) * P.valueDim + column, results[j][i]); }
    }
  }
}
fn write_sums(sums: vec4f, down: u32, feature0: u32, state: u32) {
  for (var i = 0u; i < 4u; i++) {
    let feature = feature0 + down + 16u * i;
    if (feature < P.features) { store_z(state * P.features + feature, sums[i]); }
  }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let r = lane & 15u;
  let c = lane >> 4u;
  let state = id.y + id.z * groups.y; // counts b, chunk, head
  if (state >= P.states) { return; }
  let columnTiles = (P.valueDim + TILE - 1u) / TILE;
  let column0 = (id.x % columnTiles) * TILE;
  let feature0 = (id.x / columnTiles) * ROWS;
  let head = state % P.heads;
  let chunk = (state / P.heads) % P.chunks;
  let b = state / (P.heads * P.chunks);
  let start = chunk * P.chunkSize;
  let end = min(start + P.chunkSize, P.time);
  let gate0 = (b * P.heads + head) * P.time;
  var atEnd = vec2f(0);
  if (GATED && !FROM_QUERIES) { atEnd = gate_sum_at(gate0 + end - 1u); }

  // Lane (r, c) fills features r, r + 16, … of token c on the left, and columns r, … of it on the right; it keeps features c, … and
  // columns r, …: lanes side by side read and write what lies side by side.
  ${both(
    (k) => `var own_${k}: array<Monomial, 4>;
  for (var j = 0u; j < 4u; j++) { own_${k}[j] = monomial(feature0 + ${64 * k}u + r + 16u * j); }
  var acc_${k} = array<vec4f, 4>();
  var z_${k} = vec4f(0);`,
  )}
  let members = select(1u, P.group, FROM_QUERIES);
  for (var member = 0u; member < members; member++) {
    let xHead = head * members + member;
    for (var base = start; base < end; base += STEP) {
      let t = base + c;
      ${both((k) => `var phi_${k} = vec4f(0);`)}
      var y = vec4f(0);
      if (t < end) {
        var weight = P.factor;
        if (GATED) {
          if (FROM_QUERIES) { weight *= decay(gate_sum_at(gate0 + t), vec2f(0)); }
          else { weight *= decay(atEnd, gate_sum_at(gate0 + t)); }
        }
        let at = b * P.xB + t * P.xT + xHead * P.xH;
        for (var j = 0u; j < 4u; j++) {
          ${both(
            (k) => `var value_${k} = weight * own_${k}[j].root;
          for (var k = 0u; k < DEGREE; k++) { value_${k} *= load_x(at + factor(own_${k}[j], k)); }
          phi_${k}[j] = value_${k};`,
          )}
          let i = column0 + r + 16u * j;
          if (i < P.valueDim) { y[j] = load_y(b * P.yB + t * P.yT + xHead * P.yH + i); }
        }
        var share = 1.0;
        if (FROM_QUERIES) { share = load_dsum((b * P.time + t) * P.heads * P.group + xHead); }
        ${both((k) => `z_${k} += phi_${k} * share;`)}
      }
      workgroupBarrier();
      ${both((k) => `left[${256 * k}u + slot(c, r)] = phi_${k};`)}
      right[slot(c, r)] = y;
      workgroupBarrier();
      ${multiplyTiles(rowTiles, "acc")}
    }
  }
  ${both(
    (k) => `write(acc_${k}, c, r, feature0 + ${64 * k}u, column0, state);
  let sums_${k} = sum_lanes(z_${k}, c, r);
  if (c == 0u && column0 == 0u) { write_sums(sums_${k}, r, feature0 + ${64 * k}u, state); }`,
  )}
}`;
};

const PARAMETERS = {
  time: "u32",
  heads: "u32",
  chunkSize: "u32",
  chunks: "u32",
  states: "u32",
  valueDim: "u32",
  xB: "u32",
  xT: "u32",
  xH: "u32",
  yB: "u32",
  yT: "u32",
  yH: "u32",
} as const;

/** Writes s [B, N, H, D, e] and z [B, N, H, D]; `dsum` [B, T, Hq] f32 comes with queries, whose y is f32 too. */
export function accumulateFeatures(
  plan: SequencePlan,
  from: { keys: Tensor; y: Tensor } | { queries: Tensor; y: Tensor; dsum: Tensor },
  gates: Tensor,
  into: { s: Tensor; z: Tensor },
): void {
  const { batch, time, queryHeads, heads, headDim, valueDim, degree, chunkSize, chunks, expandedDim } = plan;
  const fromQueries = "queries" in from;
  const x = fromQueries ? from.queries : from.keys;
  const { y } = from;
  const device = webgpuDevice(x);
  const rowTiles = expandedDim > 64 ? 2 : 1;
  const source: KernelSource = {
    name: "accumulate-features",
    constants: {
      ROW_TILES: rowTiles,
      DEGREE: degree,
      GATED: plan.gated,
      FROM_QUERIES: fromQueries,
    },
    tensors: {
      x: { dtype: x.dtype, access: "read" },
      y: { dtype: y.dtype, access: "read" },
      ...(fromQueries && { dsum: { dtype: "f32", access: "read" } as const }),
      gates: { dtype: "f32", access: "read" },
      monomials: { dtype: "i32", access: "read" },
      s: { dtype: "f32", access: "write" },
      z: { dtype: "f32", access: "write" },
    },
    parameters: { ...PARAMETERS, group: "u32", features: "u32", factor: "f32" },
    body: () => (fromQueries ? "" : "fn load_dsum(i: u32) -> f32 { return 0.0; }\n") + body(rowTiles),
  };
  const [xB, xT, xH] = x.strides;
  const [yB, yT, yH] = y.strides;
  const states = batch * chunks * heads;
  const factor = fromQueries ? plan.scale ** degree : 1;
  const group = queryHeads / heads;
  const shared = { time, heads, chunkSize, chunks, states, valueDim, xB, xT, xH, yB, yT, yH };
  device.dispatch(source, {
    tensors: {
      x,
      y,
      ...(fromQueries && { dsum: from.dsum }),
      gates,
      monomials: monomialTable(x, headDim, degree),
      ...into,
    },
    parameters: { ...shared, group, features: expandedDim, factor },
    workgroups: [Math.ceil(expandedDim / (64 * rowTiles)) * Math.ceil(valueDim / 64), ...device.spread(states)],
  });
}
