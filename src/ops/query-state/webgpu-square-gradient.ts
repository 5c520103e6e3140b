import { TILE_OF_TOKENS } from "./webgpu-tokens.js";

/**
 * The gradient of x at degree 2, as `stateGradient` says it. dφ is made 64 features at a time, of a block of eight elements i and a
 * block of eight elements j ≥ i, so that what features give dx are sums over the rows and columns of that square:
 *
 *     dx_i += Σ_j root · dφ_ij · x_j        dx_j += Σ_i root · dφ_ij · x_i        root = 1 where i = j, else √2
 *
 * Needs TILES, GATES and the weights of tokens.
 */
export const SQUARE_GRADIENT = `
const BLOCK = 8u;
// Invocation (r, c) has elements 2 (c / 4), … of the first block and 2 (c % 4), … of the second.
fn x_at(origin: vec4u, i: u32) -> vec4f {
  if (i >= P.headDim) { return vec4f(0); }
  return vec4f(load_x(origin.x + i), load_x(origin.y + i), load_x(origin.z + i), load_x(origin.w + i));
}
// Sums of what four invocations left for an element and a group of four tokens: \`first\`, and those \`apart\` from it.
fn sum_of(element: u32, first: u32, apart: u32, group: u32) -> vec4f {
  var sum = vec4f(0);
  for (var k = 0u; k < 4u; k++) {
    let at = slot(first + k * apart, group);
    if ((element & 1u) == 0u) { sum += left[at]; } else { sum += right[at]; }
  }
  return sum;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  ${TILE_OF_TOKENS}
  let state = ((b * P.chunks + chunk) * P.heads + head) * P.features;
  let gate0 = (b * P.heads + head) * P.time;

  // Half of the invocations own dx: each an element of every block, and four tokens.
  let owner = lane < 128u;
  let element = lane % BLOCK;
  let group = (lane / BLOCK) & 15u;
  var results: vec4u;
  var origin: vec4u;
  var scalars = vec4f(1);
  var weights: vec4f;
  for (var i = 0u; i < 4u; i++) {
    let mine = min(row0 + 4u * group + i, end - 1u);
    results[i] = ((b * P.time + mine) * P.heads * P.members + id.y) * P.headDim;
    let row = min(row0 + 4u * r + i, end - 1u);
    origin[i] = b * P.xB + row * P.xT + id.y * P.xH;
    if (!KEYS) { scalars[i] = load_ysum((b * P.time + row) * P.heads * P.members + id.y); }
    scalars[i] *= weight_of(gate0, row, end);
    weights[i] = weight_of(gate0, min(row0 + 4u * c + i, end - 1u), end);
  }

  for (var block = 0u; block < P.headDim; block += BLOCK) {
    let i0 = block + 2u * (c / 4u);
    let xi0 = x_at(origin, i0);
    let xi1 = x_at(origin, i0 + 1u);
    var own = vec4f(0);
    for (var other = block; other < P.headDim; other += BLOCK) {
      let j0 = other + 2u * (c & 3u);
      // What the owner has so far, asked for before it is needed.
      var sum = vec4f(0);
      if (owner && other + element < P.headDim && (block > 0u || P.accumulate == 1u)) {
        for (var k = 0u; k < 4u; k++) { sum[k] = load_result(results[k] + other + element); }
      }
      var features: vec4u;
      var roots = vec4f(0);
      for (var n = 0u; n < 4u; n++) {
        let i = i0 + n / 2u;
        let j = j0 + n % 2u;
        if (i <= j && j < P.headDim) {
          features[n] = state + i * P.headDim - i * (i + 1u) / 2u + j;
          roots[n] = select(1.4142135623730951, 1.0, i == j);
        }
      }
      var acc = array<vec4f, 4>(vec4f(0), vec4f(0), vec4f(0), vec4f(0));
      for (var at = 0u; at < P.valueDim; at += STEP) {
        var y = vec4f(0);
        var s = vec4f(0);
        if (at + r < P.valueDim) {
          for (var j = 0u; j < 4u; j++) {
            let row = row0 + 4u * c + j;
            if (row < end) { y[j] = weights[j] * load_y(b * P.yB + row * P.yT + id.y * P.yH + at + r); }
            if (roots[j] > 0.0) { s[j] = load_s(features[j] * P.valueDim + at + r); }
          }
        }
        workgroupBarrier();
        left[slot(r, c)] = y;
        right[slot(r, c)] = s;
        workgroupBarrier();
        multiply(&acc, r, c);
      }
      for (var n = 0u; n < 4u; n++) {
        if (roots[n] > 0.0) { acc[n] = roots[n] * (acc[n] + scalars * load_z(features[n])); }
      }
      let xj0 = x_at(origin, j0);
      let xj1 = x_at(origin, j0 + 1u);
      workgroupBarrier();
      left[slot(c, r)] = acc[0] * xj0 + acc[1] * xj1;
      right[slot(c, r)] = acc[2] * xj0 + acc[3] * xj1;
      workgroupBarrier();
      if (owner) { own += sum_of(element, 4u * (element / 2u), 1u, group); }
      workgroupBarrier();
      left[slot(c, r)] = acc[0] * xi0 + acc[2] * xi1;
      right[slot(c, r)] = acc[1] * xi0 + acc[3] * xi1;
      workgroupBarrier();
      if (owner && other + element < P.headDim) {
        sum += sum_of(element, element / 2u, 4u, group);
        for (var k = 0u; k < 4u; k++) {
          if (row0 + 4u * group + k < end) { store_result(results[k] + other + element, sum[k]); }
        }
      }
    }
    if (owner && block + element < P.headDim) {
      for (var k = 0u; k < 4u; k++) {
        let at = results[k] + block + element;
        if (row0 + 4u * group + k < end) { store_result(at, load_result(at) + own[k]); }
      }
    }
  }
}`;
