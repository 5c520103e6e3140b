import { webgpuDevice } from "../../../devices/webgpu/device.js";
import { each } from "../../../devices/webgpu/each.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { octetsAtOnce, squareDown } from "../../../devices/webgpu/legal-tiles.js";
import {
  columnMatrices,
  declareSums,
  matrices,
  multiplyAdd,
  rowStride,
  storeSums,
} from "../../../devices/webgpu/matrix-text.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SequencePlan } from "../contract.js";
import { OCTET } from "./features.js";
import { chunkRows, type Packed } from "./pack.js";
import { ELEMENT, HALVES } from "./text.js";
import { type PowerTiles, powerConstants } from "./tiles.js";

/**
 * At degree 2 the gradient through features is a product of matrices too: dx_a = Σ_b Σ_e x_b y_e S[a, b, e], twice that
 * where a = b. For one b at a time, [tokens × e] made as x_b · y by [e × a], a gather of the state's features {a, b}.
 * `SUMS`: instead dx_a = ysum · Σ_b x_b z[a, b], with ysum and z the columns for sums.
 */
const body = (tiles: PowerTiles, down: number, width: number, inner: number, sums: boolean, parts: number) => {
  const { M, subgroupSize } = tiles;
  const own = subgroupSize / M;
  const columns = columnMatrices(width, tiles);
  const lanes = down * subgroupSize;
  const stride = rowStride(inner);
  const gathers = Math.ceil((width * inner) / lanes);
  const gathered = (k: number) => `{
    let n = lane + ${k * lanes}u;
    if (n < ${width * inner}u) { next_${k} = gather(state, n / ${inner}u, b, part * ${inner}u + n % ${inner}u); }
  }`;
  return `${matrices(tiles)}
const LANES = ${lanes};
const WIDTH = ${width}u;
var<workgroup> products: array<vec4u, LANES * ${stride}>;
var<workgroup> part_of_state: array<vec4u, WIDTH * ${stride}u>;

${HALVES}${ELEMENT}
// Where feature {a, b} is: octets of b's block come together, one for each a up to its end.
fn feature(a: u32, b: u32) -> u32 {
  let low = min(a, b);
  let high = max(a, b);
  return 32u * (high / 8u) * (high / 8u + 1u) + 8u * low + high % 8u;
}
${
  sums
    ? `fn gather(state: u32, a: u32, b: u32, octet: u32) -> vec4u {
  if (a >= BLOCKS * 8u || octet >= BLOCKS) { return vec4u(0); }
  var two: array<vec2<f16>, 4>;
  for (var k = 0u; k < 4u; k++) {
    let c = 8u * octet + 2u * k;
    let first = halves(load4_s((state * P.features + feature(a, c)) * Y_OCTETS + SUM_AT).x).x;
    let second = halves(load4_s((state * P.features + feature(a, c + 1u)) * Y_OCTETS + SUM_AT).x).x;
    two[k] = vec2<f16>(select(first, 2.0h * first, a == c), select(second, 2.0h * second, a == c + 1u));
  }
  return vec4u(bitcast<u32>(two[0]), bitcast<u32>(two[1]), bitcast<u32>(two[2]), bitcast<u32>(two[3]));
}`
    : `fn gather(state: u32, a: u32, b: u32, octet: u32) -> vec4u {
  if (a >= BLOCKS * 8u) { return vec4u(0); }
  let vector = load4_s((state * P.features + feature(a, b)) * Y_OCTETS + octet);
  if (a == b) { return times(vector, 2.0h); }
  return vector;
}`
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let line = id.y + id.z * groups.y; // counts b, head, chunk
  if (line >= P.lines) { return; }
  let chunk = line % P.chunks;
  if (chunk < P.firstChunk) { return; }
  let state = (line / P.chunks / P.members) * P.chunks + chunk;
  let first = id.x * LANES;
  let row0 = line * CHUNK_ROWS;
  let ownRow = (lane / SUBGROUP) * SUBGROUP;
  let row = row0 + min(first + lane, CHUNK_ROWS - 1u);
  ${declareSums(own, columns)}
  ${each(gathers, (k) => `var next_${k} = vec4u(0);`)}
  for (var part = 0u; part < ${parts}u; part++) {
    ${sums ? "let ysum = halves(load4_y(row * Y_OCTETS + SUM_AT).x).x;" : each(inner, (k) => `let y_${k} = load4_y(row * Y_OCTETS + part * ${inner}u + ${k}u);`)}
    var b = 0u;
    ${each(gathers, gathered)}
    loop {
      workgroupBarrier();
      ${
        sums
          ? each(
              inner,
              (k) =>
                `products[lane * ${stride}u + ${k}u] = times(load4_x(row * X_OCTETS + part * ${inner}u + ${k}u), ysum);`,
            )
          : `let factor = element(row, b);
      ${each(inner, (k) => `products[lane * ${stride}u + ${k}u] = times(y_${k}, factor);`)}`
      }
      ${each(
        gathers,
        (k) => `{
        let n = lane + ${k * lanes}u;
        if (n < ${width * inner}u) { part_of_state[(n / ${inner}u) * ${stride}u + n % ${inner}u] = next_${k}; }
      }`,
      )}
      workgroupBarrier();
      b++;
      let more = ${sums ? "false" : "b < HEAD_DIM"};
      if (more) {
        ${each(gathers, gathered)}
      }
      for (var step = 0u; step < ${inner * OCTET}u; step += MATRIX_K) {
        ${multiplyAdd(
          own,
          columns,
          (i) =>
            `subgroupMatrixLoad<Left, row_major>(&products, (ownRow + ${i * M}u) * ${stride}u + step / 8u, ${stride}u)`,
          ({ octet, width: N }) =>
            `subgroupMatrixLoad<Right${N}, col_major>(&part_of_state, ${octet * OCTET}u * ${stride}u + step / 8u, ${stride}u)`,
        )}
      }
      if (!more) { break; }
    }
  }
  ${storeSums(own, columns, "result", "WIDTH", (i) => `P.result_at + (row0 + first + ownRow + ${i * M}u) * WIDTH`, {
    inside: (i) => `first + ownRow + ${i * M}u < CHUNK_ROWS`,
  })}
}`;
};

/**
 * f32 [rows of x, 8 · octets], without powers of two: what `featureGradient` gives at degree 2, as matrix products. The part
 * from sums of weights comes by itself, since it has powers of two of its own.
 */
export function squareGradient(
  plan: SequencePlan,
  tiles: PowerTiles,
  x: Packed,
  y: Packed,
  s: Tensor,
  sumAt: number,
  firstChunk: number,
): { far: Tensor; farSums: Tensor } {
  const { heads, batch, chunks, headDim } = plan;
  const device = webgpuDevice(x.values);
  const rows = x.values.shape[0];
  const width = OCTET * x.octets;
  const lines = rows / chunkRows(plan);
  const down = squareDown(tiles.square.down, x.octets);
  const lanes = down * tiles.subgroupSize;
  const [far, farSums] = [false, true].map((sums) => {
    const all = sums ? x.octets : sumAt;
    const inner = octetsAtOnce(all, tiles);
    const source: KernelSource = {
      name: `square-gradient${sums ? "-sums" : ""}`,
      constants: {
        ...powerConstants(tiles),
        X_OCTETS: x.octets,
        Y_OCTETS: y.octets,
        SUM_AT: sumAt,
        BLOCKS: Math.ceil(headDim / OCTET),
        HEAD_DIM: headDim,
        CHUNK_ROWS: chunkRows(plan),
        LANE_COUNT: lanes,
      },
      tensors: {
        x: { dtype: "f16", access: "read", vectors: true },
        y: { dtype: "f16", access: "read", vectors: true },
        s: { dtype: "f16", access: "read", vectors: true },
        result: { dtype: "f32", access: "write" },
      },
      parameters: { lines: "u32", chunks: "u32", members: "u32", features: "u32", firstChunk: "u32" },
      body: body(tiles, down, width, inner, sums, all / inner),
    };
    const result = empty([rows, width], device, "f32");
    device.dispatch(source, {
      tensors: { x: x.values, y: y.values, s, result },
      parameters: { lines, chunks, members: lines / (batch * heads * chunks), features: s.shape[3], firstChunk },
      workgroups: [Math.ceil(chunkRows(plan) / lanes), ...device.spread(lines)],
    });
    return result;
  });
  return { far, farSums };
}
