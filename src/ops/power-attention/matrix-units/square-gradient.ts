import { webgpuDevice } from "../../../devices/webgpu/device.js";
import { each } from "../../../devices/webgpu/each.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { octetsAtOnce, squareDown } from "../../../devices/webgpu/legal-tiles.js";
import {
  columnMatrices,
  declareSums,
  eachStep,
  foldedRows,
  matrices,
  multiplyAdd,
  storeSums,
  turnsOf,
} from "../../../devices/webgpu/matrix-text.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SequencePlan } from "../contract.js";
import { GROUP, OCTET, type SquareGroups, squareGroups } from "./features.js";
import { chunkRows, octetAt, type Packed, rowAt } from "./pack.js";
import { type ChunkStates, lineParameters, SUM_SCALE } from "./scan.js";
import { EXPONENTS, HALVES, LINE_AND_STATE, LINE_PARAMETERS } from "./text.js";
import { type PowerTiles, powerConstants } from "./tiles.js";

interface Shape {
  /** Subgroups, and tokens that each invocation makes products for. */
  down: number;
  tokens: number;
  /** Elements of a packed row of x; octets of y that are taken together, and how often. */
  width: number;
  inner: number;
  parts: number;
  /** Octets of x that are taken together where it meets the column for sums. */
  innerOfSums: number;
  /** x comes by blocks of rows. */
  inBlocks: boolean;
}

/**
 * At degree 2 the gradient through features is a product of matrices too: dx_a = Σ_b Σ_e x_b y_e S[a, b, e], twice that
 * where a = b. For one b at a time, [tokens × e] made as x_b · y by [e × a], a gather of the state's features {a, b}. Before them
 * Σ_b x_b y_sum z[a, b], since the column for sums has a power of two of its own: it is put into units of the others in f32.
 */
const body = (tiles: PowerTiles, shape: Shape, { blocks, pairs, triangles }: SquareGroups) => {
  const { down, tokens, width, inner, parts, innerOfSums, inBlocks } = shape;
  const { M, wide, subgroupSize } = tiles;
  const own = (tokens * subgroupSize) / M;
  const columns = columnMatrices(width, tiles);
  const lanes = down * subgroupSize;
  const products = foldedRows(inner, M);
  const part = foldedRows(inner, wide);
  const { count: gathers, at, within } = turnsOf(width * inner, lanes);
  const padded = width > blocks * OCTET;
  const perToken = (text: (k: number) => string) => each(tokens, text);
  const product = (k: number, octet: number) => `products[ownPlace + ${products.placeOf(k * subgroupSize) + octet}u]`;
  const begin = each(
    gathers,
    (k) => `let a_${k} = (${at(k)}) / ${inner}u;
  let octet_${k} = (${at(k)}) % ${inner}u;
  let keptAt_${k} = ${part.place(`a_${k}`)} + octet_${k};`,
  );
  const fetch = `let part0 = state * P.features * Y_OCTETS + part * ${inner}u;
      ${each(gathers, (k) =>
        within(
          k,
          `${padded ? `if (a_${k} < ${blocks * OCTET}u) ` : ""}{ next_${k} = load4_s(part0 + feature(a_${k}, b) * Y_OCTETS + octet_${k}); }`,
        ),
      )}`;
  // An octet of a token's row of x.
  const ofX = (k: number, octet: string) => `load4_x(${octetAt(`xAt_${k}`, octet, inBlocks)})`;
  const keep = each(gathers, (k) =>
    within(k, `part_of_state[keptAt_${k}] = times(next_${k}, select(1.0h, 2.0h, a_${k} == b));`),
  );
  const multiply = (octets: number) =>
    eachStep(
      octets * OCTET,
      tiles,
      multiplyAdd(
        own,
        columns,
        (i) =>
          `subgroupMatrixLoad<Left, row_major>(&products, ownRow / 2u * ${products.stride}u + ${products.placeOf(i * M)}u + step / 8u, ${products.stride}u)`,
        ({ octet, width: N }) =>
          `subgroupMatrixLoad<Right${N}, col_major>(&part_of_state, ${part.placeOf(octet * OCTET)}u + step / 8u, ${part.stride}u)`,
      ),
    );
  // Queries' y has its sums in two halves; keys' are 1.
  const sums = turnsOf(width * innerOfSums, lanes);
  const throughSums = `for (var part = 0u; part < X_OCTETS / ${innerOfSums}u; part++) {
    for (var half = 0u; half <= P.queries; half++) {
      workgroupBarrier();
      if (half == 0u) {
        ${each(sums.count, (k) =>
          sums.within(
            k,
            `{ let a = (${sums.at(k)}) / ${innerOfSums}u;
        let octet = (${sums.at(k)}) % ${innerOfSums}u;
        part_of_state[${part.place("a")} + octet] = column_of_sums(state * P.features, a, 8u * (part * ${innerOfSums}u + octet)); }`,
          ),
        )}
      }
      ${perToken(
        (k) => `{ let factor = select(sum_${k}.x, sum_${k}.y, half == 1u);
      ${each(innerOfSums, (octet) => `${product(k, octet)} = times(${ofX(k, `(part * ${innerOfSums}u + ${octet}u)`)}, factor);`)} }`,
      )}
      workgroupBarrier();
      ${multiply(innerOfSums)}
    }
  }
  let sumScale = min(sum_scale(line, chunk), exp2(100.0));
  ${each(own, (i) => columns.map((_, j) => `sum_${i}_${j} = subgroupMatrixScalarMultiply(sum_${i}_${j}, sumScale);`).join(" "))}`;
  return `${matrices(tiles)}
const LANES = ${lanes};
const TOKENS = ${lanes * tokens}u;
const WIDTH = ${width}u;
var<workgroup> products: array<vec4u, ${products.size(lanes * tokens)}>;
var<workgroup> part_of_state: array<vec4u, ${part.size(width)}>;

${HALVES}${EXPONENTS}${SUM_SCALE}
// Where feature {a, b} is: of two blocks, or of one.
fn feature(a: u32, b: u32) -> u32 {
  let of_one = within(b / 8u, a, b);
  return select(apart(max(a, b), min(a, b)), of_one, b / 8u == a / 8u);
}
fn apart(high: u32, low: u32) -> u32 { return 32u * (high / 8u) * (high / 8u - 1u) + 8u * low + high % 8u; }
fn within(block: u32, a: u32, b: u32) -> u32 {
  let more = max(a, b) % 8u;
  let less = min(a, b) % 8u;
  let odd = block % 2u == 1u;
  if (odd && a == b) { return ${GROUP * (pairs + triangles)}u + 8u * (block / 2u) + less; }
  return ${GROUP * pairs}u + ${GROUP}u * (block / 2u) + select(8u * more + less, 8u * less + more, odd);
}
// z[a, b], twice that where a = b, of eight b in a row.
fn column_of_sums(z0: u32, a: u32, b: u32) -> vec4u {
  var column = vec4u(0);
  if (max(a, b) >= ${blocks * OCTET}u) { return column; }
  ${each(4, (pair) => `column[${pair}] = two_halves(doubled_sum(z0, a, b + ${2 * pair}u), doubled_sum(z0, a, b + ${2 * pair + 1}u));`)}
  return column;
}
fn doubled_sum(z0: u32, a: u32, b: u32) -> f32 {
  let z = load_z(z0 + feature(a, b));
  return select(z, 2.0 * z, a == b);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  ${LINE_AND_STATE}
  let first = id.x * TOKENS;
  let row0 = line * CHUNK_ROWS;
  let ownRow = (lane / SUBGROUP) * ${tokens * subgroupSize}u;
  let ownPlace = ${products.place("ownRow + lane % SUBGROUP")};
  ${perToken(
    (k) => `let row_${k} = row0 + min(first + ownRow + lane % SUBGROUP + ${k * subgroupSize}u, CHUNK_ROWS - 1u);
  let xAt_${k} = ${rowAt(`row_${k}`, inBlocks)};`,
  )}
  ${declareSums(own, columns)}
  ${perToken((k) => `let sum_${k} = halves(load4_y(row_${k} * Y_OCTETS + ${parts * inner}u).x);`)}
  ${throughSums}
  ${each(gathers, (k) => `var next_${k} = vec4u(0);`)}
  ${begin}
  for (var part = 0u; part < ${parts}u; part++) {
    ${perToken(
      (k) => `var x_${k} = vec4u(0);
    ${each(inner, (octet) => `let y_${k}_${octet} = load4_y(row_${k} * Y_OCTETS + part * ${inner}u + ${octet}u);`)}`,
    )}
    var b = 0u;
    {
      ${fetch}
    }
    loop {
      // Elements of x come eight at a time.
      if (b % 8u == 0u) { ${perToken((k) => `x_${k} = ${ofX(k, "b / 8u")};`)} }
      workgroupBarrier();
      ${perToken(
        (k) => `{ let two = halves(x_${k}.x);
      let factor = select(two.x, two.y, b % 2u == 1u);
      ${each(inner, (octet) => `${product(k, octet)} = times(y_${k}_${octet}, factor);`)} }`,
      )}
      ${keep}
      workgroupBarrier();
      if (b % 2u == 1u) { ${perToken((k) => `x_${k} = x_${k}.yzwx;`)} }
      b++;
      let more = b < HEAD_DIM;
      if (more) {
        ${fetch}
      }
      ${multiply(inner)}
      if (!more) { break; }
    }
  }
  ${storeSums(own, columns, "result", "WIDTH", (i) => `P.result_at + (row0 + first + ownRow + ${i * M}u) * WIDTH`, {
    inside: (i) => `first + ownRow + ${i * M}u < CHUNK_ROWS`,
  })}
}`;
};

/** What `featureGradient` gives, at degree 2. */
export function squareGradient(
  plan: SequencePlan,
  tiles: PowerTiles,
  side: "queries" | "keys",
  x: Packed,
  y: Packed,
  states: ChunkStates,
  sumAt: number,
  valueLargest: Tensor,
): Tensor {
  const { heads, headDim } = plan;
  const { s, z, factors } = states;
  const device = webgpuDevice(x.values);
  const rows = x.values.shape[0];
  const width = OCTET * x.octets;
  const lines = rows / chunkRows(plan);
  const { tokens } = tiles.square;
  const down = squareDown(tiles.square.down, x.octets);
  const own = down * tokens * tiles.subgroupSize;
  const inner = octetsAtOnce(sumAt, tiles, tiles.square.octets);
  const innerOfSums = octetsAtOnce(x.octets, tiles, inner);
  const inBlocks = x.blocks !== undefined;
  const source: KernelSource = {
    name: "square-gradient",
    constants: {
      ...powerConstants(tiles),
      X_OCTETS: x.octets,
      Y_OCTETS: y.octets,
      HEAD_DIM: headDim,
      CHUNK_ROWS: chunkRows(plan),
      TILE_DOWN: down,
      TILE_TOKENS: tokens,
      AT_ONCE: inner,
      BLOCKS: inBlocks,
    },
    tensors: {
      x: { dtype: "f16", access: "read", vectors: true },
      y: { dtype: "f16", access: "read", vectors: true },
      s: { dtype: "f16", access: "read", vectors: true },
      z: { dtype: "f32", access: "read" },
      factors: { dtype: "f32", access: "read" },
      valueLargest: { dtype: "f32", access: "read" },
      result: { dtype: "f32", access: "write" },
    },
    parameters: { ...LINE_PARAMETERS, heads: "u32", queries: "u32" },
    body: () =>
      body(tiles, { down, tokens, width, inner, parts: sumAt / inner, innerOfSums, inBlocks }, squareGroups(headDim)),
  };
  const result = empty([rows, width], device, "f32");
  device.dispatch(source, {
    tensors: { x: x.blocks ?? x.values, y: y.values, s, z, factors, valueLargest, result },
    parameters: {
      ...lineParameters(plan, lines, states),
      heads,
      queries: Number(side === "queries"),
    },
    workgroups: [Math.ceil(chunkRows(plan) / own), ...device.spread(lines)],
  });
  return result;
}
