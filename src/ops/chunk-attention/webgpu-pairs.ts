import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { GATES, TILES } from "../../devices/webgpu/tiles.js";
import type { DType } from "../../tensor/dtype.js";
import type { Tensor } from "../../tensor/tensor.js";
import { absent } from "../power-attention/webgpu-gates.js";

/**
 * Attention over pairs of tokens, tile by tile; nothing of size T×T is stored. Each workgroup owns 64 rows of one head
 * and walks over the tiles of the other side. Four results come from this one kernel:
 *
 *     rows       columns    result       its product
 *     queries    keys       output       Σ_j w_ij v_j            and the sum Σ_j w_ij (power) or its log (softmax)
 *     queries    keys       dQ           Σ_j ds_ij k_j
 *     keys       queries    dV           Σ_i w_ij dy_i
 *     keys       queries    dK           Σ_i ds_ij q_i
 *
 * power:    w = (scale q·k)^p · exp(G_i − G_j)        ds = (dy_i·v_j + rowB_i) · ∂w/∂(q·k)
 * softmax:  w = exp(scale q·k − rowA_i)               ds = (dy_i·v_j − rowB_i) · w · scale
 * with rowA the log of the sum of exponentials, and rowB what the row's sum receives (power) or dy_i·out_i (softmax).
 */
const body = `${TILES}${GATES}
fn power(x: vec4f, degree: u32) -> vec4f {
  var y = vec4f(1);
  for (var k = 0u; k < degree; k++) { y *= x; }
  return y;
}

fn q_of(b: u32, t: u32, head: u32, i: u32) -> f32 { return load_q(b * P.qB + t * P.qT + head * P.qH + i); }
fn k_of(b: u32, t: u32, head: u32, i: u32) -> f32 { return load_k(b * P.kB + t * P.kT + head * P.kH + i); }
fn v_of(b: u32, t: u32, head: u32, i: u32) -> f32 { return load_v(b * P.vB + t * P.vT + head * P.vH + i); }
fn dy_of(b: u32, t: u32, head: u32, i: u32) -> f32 { return load_dy(row_of(b, t, head) * P.valueDim + i); }
// Per-query values are contiguous [B, T, Hq].
fn row_of(b: u32, t: u32, queryHead: u32) -> u32 { return (b * P.time + t) * P.heads * P.group + queryHead; }

// The vectors on either side of a score, and on either side of its gradient.
fn key_side(keys: bool, b: u32, t: u32, head: u32, i: u32) -> f32 {
  if (keys) { return k_of(b, t, head / P.group, i); }
  return q_of(b, t, head, i);
}
fn value_side(keys: bool, b: u32, t: u32, head: u32, i: u32) -> f32 {
  if (keys) { return v_of(b, t, head / P.group, i); }
  return dy_of(b, t, head, i);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  let r = lane & 15u;
  let c = lane >> 4u;
  let b = id.z;
  let outDim = select(P.valueDim, P.headDim, GRADIENT);
  let outTiles = (outDim + TILE - 1u) / TILE;
  let column0 = (id.x % outTiles) * TILE;
  let tile = id.x / outTiles;
  let tilesPerChunk = (P.chunkSize + TILE - 1u) / TILE;
  let start = (tile / tilesPerChunk) * P.chunkSize;
  let end = min(start + P.chunkSize, P.time);
  let row0 = start + (tile % tilesPerChunk) * TILE;
  if (row0 >= end) { return; }

  var out = array<vec4f, 4>();
  var sum = vec4f(0);
  var most = vec4f(-3.0e38);
  // Keys are read by every query head of their group.
  let members = select(1u, P.group, ROWS_ARE_KEYS);
  let first = select(start, row0, ROWS_ARE_KEYS);
  let last = select(min(row0 + TILE, end), end, ROWS_ARE_KEYS);
  for (var member = 0u; member < members; member++) {
    let head = id.y * members + member; // a query head
    for (var col0 = first; col0 < last; col0 += TILE) {
      // Filling: lane (r, c) takes step r of group c from the rows, and the same from the columns.
      var score = array<vec4f, 4>();
      for (var at = 0u; at < P.headDim; at += STEP) {
        var a = vec4f(0);
        var x = vec4f(0);
        if (at + r < P.headDim) {
          for (var j = 0u; j < 4u; j++) {
            let row = row0 + 4u * c + j;
            let col = col0 + 4u * c + j;
            if (row < end) { a[j] = key_side(ROWS_ARE_KEYS, b, row, head, at + r); }
            if (col < end) { x[j] = key_side(!ROWS_ARE_KEYS, b, col, head, at + r); }
          }
        }
        workgroupBarrier();
        left[slot(r, c)] = a;
        right[slot(r, c)] = x;
        workgroupBarrier();
        multiply(&score, r, c);
      }
      var change = array<vec4f, 4>();
      if (GRADIENT) {
        for (var at = 0u; at < P.valueDim; at += STEP) {
          var a = vec4f(0);
          var x = vec4f(0);
          if (at + r < P.valueDim) {
            for (var j = 0u; j < 4u; j++) {
              let row = row0 + 4u * c + j;
              let col = col0 + 4u * c + j;
              if (row < end) { a[j] = value_side(ROWS_ARE_KEYS, b, row, head, at + r); }
              if (col < end) { x[j] = value_side(!ROWS_ARE_KEYS, b, col, head, at + r); }
            }
          }
          workgroupBarrier();
          left[slot(r, c)] = a;
          right[slot(r, c)] = x;
          workgroupBarrier();
          multiply(&change, r, c);
        }
      }

      // Weights of this lane's 4 × 4 pairs, in place of the scores.
      var rowMax = vec4f(-3.0e38);
      for (var j = 0u; j < 4u; j++) {
        let col = col0 + 4u * c + j;
        for (var i = 0u; i < 4u; i++) {
          let row = row0 + 4u * r + i;
          let query = select(row, col, ROWS_ARE_KEYS);
          let key = select(col, row, ROWS_ARE_KEYS);
          let inside = row < end && col < end && key <= query;
          if (SOFTMAX) {
            score[j][i] = select(-3.0e38, P.scale * score[j][i], inside);
            if (GRADIENT || ROWS_ARE_KEYS) {
              if (inside) { score[j][i] = exp(score[j][i] - load_rowA(row_of(b, query, head))); }
              else { score[j][i] = 0.0; }
            }
          } else if (inside) {
            var weight = 1.0;
            if (GATED) {
              let at = (b * P.heads + head / P.group) * P.time;
              weight = decay(gate_sum_at(at + query), gate_sum_at(at + key));
            }
            score[j][i] *= P.scale;
            if (GRADIENT) { change[j][i] = weight * (change[j][i] + load_rowB(row_of(b, query, head))); }
            else { change[j][i] = weight; }
          } else {
            score[j][i] = 0.0;
            change[j][i] = 0.0;
          }
          if (SOFTMAX && GRADIENT && inside) {
            score[j][i] *= P.scale * (change[j][i] - load_rowB(row_of(b, query, head)));
          }
        }
        if (SOFTMAX) { rowMax = max(rowMax, score[j]); }
        else if (GRADIENT) { score[j] = change[j] * (DEGREE * P.scale) * power(score[j], DEGREE - 1u); }
        else { score[j] = change[j] * power(score[j], DEGREE); }
      }
      if (SOFTMAX && !GRADIENT && !ROWS_ARE_KEYS) {
        let now = max(most, max_lanes(rowMax, c, r));
        let shrink = exp(most - now);
        most = now;
        sum *= shrink;
        for (var j = 0u; j < 4u; j++) {
          out[j] *= shrink;
          // A row beyond the end has no pair at all: its maximum says so.
          score[j] = select(exp(score[j] - now), vec4f(0), score[j] <= vec4f(-2.9e38));
        }
      }
      sum += score[0] + score[1] + score[2] + score[3];

      // Sixteen columns at a time, their weights go to the left tile.
      for (var part = 0u; part < 4u; part++) {
        var x = vec4f(0);
        let col = col0 + part * STEP + c;
        if (col < end) {
          for (var j = 0u; j < 4u; j++) {
            let i = column0 + 4u * r + j;
            if (i < outDim) {
              if (GRADIENT) { x[j] = key_side(!ROWS_ARE_KEYS, b, col, head, i); }
              else { x[j] = value_side(!ROWS_ARE_KEYS, b, col, head, i); }
            }
          }
        }
        workgroupBarrier();
        right[slot(c, r)] = x;
        if (c / 4u == part) {
          for (var j = 0u; j < 4u; j++) { left[slot(4u * (c & 3u) + j, r)] = score[j]; }
        }
        workgroupBarrier();
        // On the diagonal, tokens that a row may not see share its tile.
        if (col0 == row0) { multiply_existing(&out, r, c); }
        else { multiply(&out, r, c); }
      }
    }
  }

  let total = sum_lanes(sum, c, r);
  for (var i = 0u; i < 4u; i++) {
    let row = row0 + 4u * r + i;
    if (row >= end) { break; }
    let at = (b * P.time + row) * (P.heads * select(P.group, 1u, ROWS_ARE_KEYS)) + id.y;
    if (SUM && id.x % outTiles == 0u && c == 0u) {
      if (SOFTMAX) { store_rowSum(at, most[i] + log(total[i])); }
      else if (P.accumulate == 1u) { store_rowSum(at, load_rowSum(at) + total[i]); }
      else { store_rowSum(at, total[i]); }
    }
    var value = vec4f(out[0][i], out[1][i], out[2][i], out[3][i]);
    if (SOFTMAX && !GRADIENT && !ROWS_ARE_KEYS) { value /= total[i]; }
    let i0 = column0 + 4u * c;
    for (var j = 0u; j < 4u; j += 2u) {
      if (i0 + j >= outDim) { break; }
      let to = at * outDim + i0 + j;
      if (P.accumulate == 1u) {
        value[j] += load_result(to);
        if (i0 + j + 1u < outDim) { value[j + 1u] += load_result(to + 1u); }
      }
      if (EVEN) { store2_result(to, value[j], value[j + 1u]); }
      else {
        store_result(to, value[j]);
        if (i0 + j + 1u < outDim) { store_result(to + 1u, value[j + 1u]); }
      }
    }
  }
}`;

export interface PairsPlan {
  readonly batch: number;
  readonly time: number;
  readonly queryHeads: number;
  readonly heads: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly scale: number;
  readonly chunkSize: number;
  readonly chunks: number;
  readonly gated: boolean;
  /** Of the weights; undefined for softmax. */
  readonly degree?: number;
}

export interface PairsTensors {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  /** As `gateSums` makes them. */
  gates: Tensor;
  /** f32 or the output's dtype, contiguous [B, T, Hq, e]; absent for the output. */
  dy?: Tensor;
  /** [B, T, Hq] f32, as above. */
  rowA?: Tensor;
  rowB?: Tensor;
}

export type PairsResult = "output" | "dQ" | "dV" | "dK";

/** Writes `result` (contiguous), or adds to it with `accumulate`; `rowSum` [B, T, Hq] f32 only for the output. */
export function pairs(
  plan: PairsPlan,
  what: PairsResult,
  { q, k, v, gates, dy, rowA, rowB }: PairsTensors,
  result: Tensor,
  rowSum?: Tensor,
  accumulate = false,
): void {
  const { batch, time, queryHeads, heads, headDim, valueDim, chunkSize, chunks, degree } = plan;
  const none = absent(q);
  const rowsAreKeys = what === "dV" || what === "dK";
  const gradient = what === "dQ" || what === "dK";
  const outDim = gradient ? headDim : valueDim;
  const read = (dtype: DType) => ({ dtype, access: "read" }) as const;
  const tensors: Record<string, Tensor> = { q, k, v, gates, dy: dy ?? none };
  // Bindings are few (8 on small devices): only those of this result.
  const softmax = degree === undefined;
  const unused: string[] = [];
  const source: KernelSource = {
    name: `pairs-${what}`,
    constants: {
      DEGREE: degree ?? 1,
      SOFTMAX: softmax,
      GATED: plan.gated,
      ROWS_ARE_KEYS: rowsAreKeys,
      GRADIENT: gradient,
      SUM: rowSum !== undefined,
      EVEN: outDim % 2 === 0,
    },
    tensors: {
      q: read(q.dtype),
      k: read(k.dtype),
      v: read(v.dtype),
      gates: read("f32"),
      dy: read(dy?.dtype ?? "f32"),
      result: { dtype: result.dtype, access: "write" },
    },
    parameters: {
      time: "u32",
      heads: "u32",
      group: "u32",
      headDim: "u32",
      valueDim: "u32",
      accumulate: "u32",
      chunkSize: "u32",
      scale: "f32",
      qB: "u32",
      qT: "u32",
      qH: "u32",
      kB: "u32",
      kT: "u32",
      kH: "u32",
      vB: "u32",
      vT: "u32",
      vH: "u32",
    },
    body: () => unused.join("\n") + body,
  };
  tensors.result = result;
  const bind = (name: string, tensor: Tensor | undefined, access: "read" | "write") => {
    if (tensor) {
      source.tensors[name] = { dtype: "f32", access };
      tensors[name] = tensor;
    } else unused.push(`fn load_${name}(i: u32) -> f32 { return 0.0; } fn store_${name}(i: u32, value: f32) {}`);
  };
  bind("rowA", rowA, "read");
  bind("rowB", rowB, "read");
  bind("rowSum", rowSum, "write");
  const [qB, qT, qH] = q.strides;
  const [kB, kT, kH] = k.strides;
  const [vB, vT, vH] = v.strides;
  const tiles = chunks * Math.ceil(chunkSize / 64) * Math.ceil(outDim / 64);
  webgpuDevice(q).dispatch(source, {
    tensors,
    parameters: {
      time,
      heads,
      group: queryHeads / heads,
      headDim,
      valueDim,
      accumulate: accumulate ? 1 : 0,
      chunkSize,
      scale: plan.scale,
      qB,
      qT,
      qH,
      kB,
      kT,
      kH,
      vB,
      vT,
      vH,
    },
    workgroups: [tiles, rowsAreKeys ? heads : queryHeads, batch],
  });
}
