import { webgpuDevice } from "../../../devices/webgpu/device.js";
import { each } from "../../../devices/webgpu/each.js";
import type { KernelSource } from "../../../devices/webgpu/kernel.js";
import { rowsBeginWide } from "../../../devices/webgpu/wide.js";
import type { DType } from "../../../tensor/dtype.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SequencePlan } from "../contract.js";
import { absent } from "../webgpu-gates.js";
import { OCTET } from "./features.js";
import { EXPONENTS, HALVES } from "./text.js";

/** Rows of a chunk are padded with zeros to a multiple of this, and come so many to a block. */
export const ROW_MULTIPLE = 32;

/** Of a plan what decides where rows go. */
export type PackPlan = Pick<SequencePlan, "batch" | "time" | "heads" | "chunkSize" | "chunks">;

/** Rows that a chunk takes in packed tensors. */
export function chunkRows({ chunkSize }: Pick<SequencePlan, "chunkSize">): number {
  return Math.ceil(chunkSize / ROW_MULTIPLE) * ROW_MULTIPLE;
}

/**
 * Vectors of a tensor [B, T, heads, width] for matrix units: f16 [B, heads, N, rows, 8 · octets], chunk by chunk, zero
 * beyond the ends. bf16 reaches further than f16, so values are scaled by powers of two on the way.
 */
export interface Packed {
  values: Tensor;
  /** 16-byte vectors of a row. */
  octets: number;
  /** f32 [B, heads, N, rows]: exponents of the powers of two that rows were divided by, where that is by row. */
  exponents: Tensor;
  /** Of queries and keys at degree 2, in chunks: the same values by blocks of rows, octets outermost, so that lanes with a row each read side by side. */
  blocks?: Tensor;
}

const PARAMETERS = {
  rows: "u32",
  chunkRows: "u32",
  time: "u32",
  chunkSize: "u32",
  chunks: "u32",
  heads: "u32",
  group: "u32",
  width: "u32",
  xB: "u32",
  xT: "u32",
  xH: "u32",
} as const;

/** Elements 8 · part … of a row that begins at `base`; beyond its width they stay as they are. */
const loadEight = (name: string, to: string, base: string, wide: boolean) =>
  wide
    ? `if (8u * part < P.width) {
      let eight = load8_${name}(${base} + 8u * part);
      ${each(4, (j) => `${to}[${j}] = eight.a[${j}]; ${to}[${j + 4}] = eight.b[${j}];`)}
    }`
    : each(8, (j) => `if (8u * part + ${j}u < P.width) { ${to}[${j}] = load_${name}(${base} + 8u * part + ${j}u); }`);

/**
 * A workgroup takes 256 / LOADED rows, a lane for each eight elements. `BY_ROW`: each row's length comes into [½, 1), so
 * that no product of packed rows is above 1; else each chunk's largest magnitude does, by `largest`. Where a row has octets
 * more than are loaded, the first of those begins with 1, or with `extra` of the row: divided by the chunk's power of two it
 * is an element of the row like others. With `mean`, rows are gradients of a mean of values: they are divided by its sum of
 * weights first, and `extra`, the gradient of that sum, is less the row's product with the mean.
 */
const kernel = (
  dtype: DType,
  wide: boolean,
  mean: { wide: boolean } | undefined,
  constants: Record<string, number | boolean>,
): KernelSource => ({
  name: "pack-halves",
  constants,
  tensors: {
    x: { dtype, access: "read", wide },
    largest: { dtype: "f32", access: "read" },
    ...(mean
      ? { mean: { dtype: "f32", access: "read", wide: mean.wide }, rowSum: { dtype: "f32", access: "read" } }
      : { extra: { dtype: "f32", access: "read" } }),
    packed: { dtype: "f16", access: "write", vectors: true },
    exponents: { dtype: "f32", access: "write" },
    ...(constants.BLOCKS && { blocks: { dtype: "f16", access: "write", vectors: true } }),
  },
  parameters: PARAMETERS,
  body: () => `enable f16;
const ROWS = 256u / LOADED;
var<workgroup> partial: array<u32, 256>;

${EXPONENTS}${HALVES}// Of a mean's gradient, the digits that f16 has: then the sum's gradient goes with what is packed. A token that sees one key
// has dy·v + dsum = 0, and what rounding leaves of it would be divided by a weight that may be small.
fn rounded(x: f32) -> f32 {
  let bits = bitcast<u32>(x);
  if (!MEAN || (bits & 0x7f800000u) == 0x7f800000u) { return x; }
  return bitcast<f32>((bits + 0xfffu + ((bits >> 13u) & 1u)) & 0xffffe000u);
}
// x / 2^e, for e beyond what one factor holds.
fn scaled(x: f32, e: i32) -> f32 {
  let half = e / 2;
  return x * bitcast<f32>(u32(127 - half) << 23u) * bitcast<f32>(u32(127 - (e - half)) << 23u);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let part = lane % LOADED;
  let row = (id.x + id.y * groups.x) * ROWS + lane / LOADED;
  let inside = lane / LOADED < ROWS && row < P.rows;
  let inChunk = row % P.chunkRows;
  let line = row / P.chunkRows; // counts b, head, chunk
  let chunk = line % P.chunks;
  let head = (line / P.chunks) % P.heads;
  let b = line / (P.chunks * P.heads);
  let t = chunk * P.chunkSize + inChunk;
  let alive = inside && inChunk < P.chunkSize && t < P.time;

  let tokenRow = (b * P.time + t) * P.heads + head;
  var value = array<f32, 8>();
  var average = array<f32, 8>();
  var factor = 1.0;
  var most = 0u;
  if (alive) {
    ${loadEight("x", "value", "b * P.xB + t * P.xT + head * P.xH", wide)}
    ${
      mean
        ? `let weights = load_rowSum(tokenRow);
    factor = select(1.0 / weights, 0.0, weights == 0.0);
    ${loadEight("mean", "average", "tokenRow * P.width", mean.wide)}`
        : ""
    }
    ${each(8, (j) => `value[${j}] = rounded(value[${j}] * factor);`)}
    ${each(8, (j) => `most = max(most, bitcast<u32>(value[${j}]) & 0x7fffffffu);`)}
  }
  let state = (b * P.chunks + chunk) * (P.heads / P.group) + head / P.group;
  var chunkE = 0;
  if (inside && (!BY_ROW || EXTRA)) { chunkE = exponent_of(load_largest(state)); }
  var more = 1.0;
  if (EXTRA) {
    more = 0.0;
    ${
      mean
        ? `var dot = 0.0;
    ${each(8, (j) => `dot += value[${j}] * average[${j}];`)}
    partial[lane] = bitcast<u32>(dot);
    workgroupBarrier();
    dot = 0.0;
    for (var k = 0u; k < LOADED; k++) { dot += bitcast<f32>(partial[min(lane - part + k, 255u)]); }
    workgroupBarrier();
    let extra = -dot;`
        : `var extra = 0.0;
    if (alive) { extra = load_extra(tokenRow); }`
    }
    if (alive && part == 0u) {
      more = scaled(extra, chunkE);
      most = max(most, bitcast<u32>(more) & 0x7fffffffu);
    }
  }
  var e = chunkE;
  if (BY_ROW) {
    partial[lane] = most;
    workgroupBarrier();
    let first = lane - part;
    for (var k = 0u; k < LOADED; k++) { most = max(most, partial[min(first + k, 255u)]); }
    e = exponent_of(bitcast<f32>(most));
    var squares = 0.0;
    ${each(8, (j) => `let element_${j} = scaled(value[${j}], e); squares += element_${j} * element_${j};`)}
    if (EXTRA) { squares += scaled(more, e) * scaled(more, e); }
    workgroupBarrier();
    partial[lane] = bitcast<u32>(squares);
    workgroupBarrier();
    squares = 0.0;
    for (var k = 0u; k < LOADED; k++) { squares += bitcast<f32>(partial[min(first + k, 255u)]); }
    // Twice the exponent of the length is that of its square, rounded up.
    e += (exponent_of(squares) + 1) / 2;
  }
  if (!inside) { return; }
  let at = row * STRIDE + part;
  let octet = vec4u(
    two_halves(scaled(value[0], e), scaled(value[1], e)), two_halves(scaled(value[2], e), scaled(value[3], e)),
    two_halves(scaled(value[4], e), scaled(value[5], e)), two_halves(scaled(value[6], e), scaled(value[7], e)));
  store4_packed(at, octet);
  ${constants.BLOCKS ? `store4_blocks((row / ${ROW_MULTIPLE}u * STRIDE + part) * ${ROW_MULTIPLE}u + row % ${ROW_MULTIPLE}u, octet);` : ""}
  if (part > 0u) { return; }
  // A row of zeros weighs nothing, whatever its exponent would be.
  if (BY_ROW) { store_exponents(row, select(f32(e), -1e9, most == 0u)); }
  if (EXTRA) { more = scaled(more, e); }
  let first_digits = bitcast<f32>(bitcast<u32>(more) & 0xffffe000u); // as many as f16 has
  for (var k = u32(LOADED); k < STRIDE; k++) {
    store4_packed(row * STRIDE + k, vec4u(select(0u, two_halves(first_digits, more - first_digits), k == SUM_AT), 0u, 0u, 0u));
  }
}`,
});

interface Packing {
  octets: { stride: number; sumAt: number };
  byRow: boolean;
  /** [B, N, H] f32: the largest magnitude of each chunk and key head. */
  largest?: Tensor;
  /** [B, T, heads] f32, itself or as what it is made of. */
  extra?: Tensor;
  mean?: Mean;
  /** Where every octet of a row is loaded. */
  inBlocks?: boolean;
}

/** [B, T, Hq, e] and [B, T, Hq] f32, contiguous: a mean of values and its sum of weights. */
interface Mean {
  mean: Tensor;
  rowSum: Tensor;
}

function pack(plan: PackPlan, x: Tensor, { octets, byRow, largest, extra, mean, inBlocks = false }: Packing): Packed {
  const { batch, time, heads: keyHeads, chunkSize, chunks } = plan;
  const [, , heads, width] = x.shape;
  const device = webgpuDevice(x);
  const rows = batch * heads * chunks * chunkRows(plan);
  const packed = {
    values: empty([rows, octets.stride * OCTET], device, "f16"),
    octets: octets.stride,
    exponents: empty([byRow ? rows : 1], device, "f32"),
    ...(inBlocks && { blocks: empty([rows, octets.stride * OCTET], device, "f16") }),
  };
  const none = absent(x);
  const [xB, xT, xH] = x.strides;
  device.dispatch(
    kernel(x.dtype, rowsBeginWide(x), mean && { wide: rowsBeginWide(mean.mean) }, {
      LOADED: octets.sumAt,
      STRIDE: octets.stride,
      SUM_AT: octets.sumAt,
      BY_ROW: byRow,
      BLOCKS: inBlocks,
      EXTRA: extra !== undefined || mean !== undefined,
      MEAN: mean !== undefined,
      MEAN_WIDE: mean !== undefined && rowsBeginWide(mean.mean),
    }),
    {
      tensors: {
        x,
        largest: largest ?? none,
        ...(mean ?? { extra: extra ?? none }),
        packed: packed.values,
        exponents: packed.exponents,
        ...(packed.blocks && { blocks: packed.blocks }),
      },
      parameters: {
        ...{ rows, chunkRows: chunkRows(plan), time, chunkSize, chunks, heads, group: heads / keyHeads, width },
        ...{ xB, xT, xH },
      },
      workgroups: device.spread(Math.ceil(rows / Math.floor(256 / octets.sumAt))),
    },
  );
  return packed;
}

/** Queries or keys, each row by itself, as many elements as a multiple of `stepMultiple`; `inBlocks`: and once more, by blocks. */
export function packRows(plan: PackPlan, x: Tensor, stepMultiple: number, inBlocks = false): Packed {
  const stride = (Math.ceil(x.shape[3] / stepMultiple) * stepMultiple) / OCTET;
  return pack(plan, x, { octets: { stride, sumAt: stride }, byRow: true, inBlocks });
}

/**
 * Where a packed row begins, and where an octet is of one that begins there, with rows one by one or by blocks: in WGSL. Needs
 * X_OCTETS.
 */
export const rowAt = (row: string, inBlocks: boolean) =>
  `${row} * X_OCTETS${inBlocks ? ` - ${row} % ${ROW_MULTIPLE}u * (X_OCTETS - 1u)` : ""}`;
export const octetAt = (rowStart: string, octet: string, inBlocks: boolean) =>
  `${rowStart} + ${octet}${inBlocks ? ` * ${ROW_MULTIPLE}u` : ""}`;

/** Whether rows are to be packed in blocks, too: features of squares are summed over most of them. */
export const summedInBlocks = ({ degree, chunks }: SequencePlan) => degree === 2 && chunks > 1;

interface ColumnMultiples {
  stepMultiple: number;
  columnMultiple: number;
}

/** Where packed values have their column for sums, and how many columns they have, all as octets. */
export function valueOctets(valueDim: number, { stepMultiple, columnMultiple }: ColumnMultiples) {
  const sumAt = (Math.ceil(valueDim / stepMultiple) * stepMultiple) / OCTET;
  const multiple = columnMultiple / OCTET;
  return { stride: Math.ceil((sumAt + 1) / multiple) * multiple, sumAt };
}

/**
 * Values [B, T, H, e], divided by a power of two by chunk and key head, and after them a column of ones: what makes sums of
 * weights beside weighted sums.
 */
export function packValues(plan: SequencePlan, v: Tensor, largest: Tensor, multiples: ColumnMultiples): Packed {
  return pack(plan, v, { octets: valueOctets(v.shape[3], multiples), byRow: false, largest });
}

/** Gradients of y [B, T, Hq, e] and of its sums of weights [B, T, Hq], f32; or of their quotient, contiguous, with what that was. */
export type RowGradients = { dy: Tensor; dsum: Tensor } | ({ dMean: Tensor } & Mean);

/** Each row of gradients by itself; that of its sum of weights is divided by the power of two of the chunk's values too. */
export function packGradients(
  plan: SequencePlan,
  gradients: RowGradients,
  valueLargest: Tensor,
  multiples: ColumnMultiples,
): Packed {
  const shared = { octets: valueOctets(plan.valueDim, multiples), byRow: true, largest: valueLargest };
  if ("dy" in gradients) return pack(plan, gradients.dy, { ...shared, extra: gradients.dsum });
  const { dMean, mean, rowSum } = gradients;
  return pack(plan, dMean, { ...shared, mean: { mean, rowSum } });
}
