import { webgpuDevice } from "../../devices/webgpu/device.js";
import { each } from "../../devices/webgpu/each.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { broadcastStrides, places } from "../../devices/webgpu/map.js";
import { matricesOf } from "../../devices/webgpu/matrix-text.js";
import { multiplyTiles, tilesOfRows } from "../../devices/webgpu/tiles.js";
import type { DType } from "../../tensor/dtype.js";
import { sizeOf } from "../../tensor/shape.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { largest } from "../reduce/webgpu.js";
import { chooseTile, type MatmulTile, matrixUnitsKernel } from "./webgpu-matrix-units.js";

const body = (rowTiles: 1 | 2) => {
  const both = (text: (k: number) => string) => each(rowTiles, text);
  return `${tilesOfRows(rowTiles)}
const ROWS = ${rowTiles}u * TILE;

// Rows down, down + 16, … and columns 4 across … of a tile: pairs of columns, as halves are written.
fn write(results: array<vec4f, 4>, down: u32, across: u32, row0: u32, column0: u32, matrix: u32) {
  for (var i = 0u; i < 4u; i++) {
    let row = row0 + down + 16u * i;
    if (row >= P.rows) { break; }
    for (var j = 0u; j < 4u; j += 2u) {
      let column = column0 + 4u * across + j;
      if (column >= P.columns) { break; }
      let to = (matrix * P.rows + row) * P.columns + column;
      if (EVEN) { store2_out(to, results[j][i], results[j + 1u][i]); }
      else {
        store_out(to, results[j][i]);
        if (column + 1u < P.columns) { store_out(to + 1u, results[j + 1u][i]); }
      }
    }
  }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  let r = lane & 15u;
  let c = lane >> 4u;
  let row0 = id.y * ROWS;
  let column0 = id.x * TILE;
  let a0 = place_a(id.z);
  let b0 = place_b(id.z);
  // Lanes next to each other read elements next to each other: along the inner axis, or across it; and write such.
  let aStep = select(r, c, A_ACROSS);
  let aGroup = select(c, r, A_ACROSS);
  let bStep = select(r, c, B_ACROSS);
  let bGroup = select(c, r, B_ACROSS);
  ${both((k) => `var acc_${k} = array<vec4f, 4>();`)}
  for (var at = 0u; at < P.inner; at += STEP) {
    ${both((k) => `var x_${k} = vec4f(0);`)}
    var y = vec4f(0);
    for (var j = 0u; j < 4u; j++) {
      ${both(
        (k) => `let row_${k} = row0 + ${64 * k}u + aGroup + 16u * j;
      if (row_${k} < P.rows && at + aStep < P.inner) { x_${k}[j] = load_a(a0 + row_${k} * P.aRow + (at + aStep) * P.aInner); }`,
      )}
      let column = column0 + 4u * bGroup + j;
      if (column < P.columns && at + bStep < P.inner) { y[j] = load_b(b0 + column * P.bColumn + (at + bStep) * P.bInner); }
    }
    workgroupBarrier();
    ${both((k) => `left[${256 * k}u + slot(aStep, aGroup)] = x_${k};`)}
    right[slot(bStep, bGroup)] = y;
    workgroupBarrier();
    ${multiplyTiles(rowTiles, "acc")}
  }
  ${both((k) => `write(acc_${k}, c, r, row0 + ${64 * k}u, column0, id.z);`)}
}`;
};

/** Workgroups that keep a large GPU busy: with fewer, tiles are better small. */
const MANY = 256;

/** How an operand's matrices lie in memory: along the inner axis or across it, in lines of whole octets; or neither. */
function lines(x: Tensor, along: number, across: number, alongCount: number, acrossCount: number) {
  const octets = (n: number) => n % 8 === 0;
  const outside = x.strides.slice(0, -2);
  if (!octets(x.offset) || !outside.every(octets)) return undefined;
  if (along === 1 && octets(across) && octets(alongCount)) return { along: true, line: across };
  if (across === 1 && octets(along) && octets(acrossCount)) return { along: false, line: along };
  return undefined;
}

/**
 * On matrix units, where the GPU has them and the operands are halves: those lose nothing as f16, bf16 after a scaling
 * of each tensor by a power of two. f32 operands would lose half of their digits and stay on the portable kernel, as do
 * matrices whose lines are no multiples of eight elements.
 */
function onMatrixUnits(a: Tensor, b: Tensor, batch: readonly number[], dtype: DType) {
  const { matrixUnits, gpu, tuned } = webgpuDevice(a);
  const [rows, inner] = a.shape.slice(-2);
  const columns = b.shape[b.shape.length - 1];
  if (!matrixUnits || a.dtype === "f32" || columns % 8 !== 0 || inner === 0) return undefined;
  const [aRow, aInner] = a.strides.slice(-2);
  const [bInner, bColumn] = b.strides.slice(-2);
  const aLines = lines(a, aInner, aRow, inner, rows);
  const bLines = lines(b, bInner, bColumn, inner, columns);
  const units = matricesOf(matrixUnits);
  const tile = chooseTile(
    units,
    gpu.limits,
    rows,
    columns,
    sizeOf(batch),
    tuned.matmul as unknown as MatmulTile | undefined,
  );
  if (!aLines || !bLines || !tile) return undefined;
  const scaled = a.dtype === "bf16";
  const layout = { aAlong: aLines.along, bAlong: bLines.along, scaled, out: dtype };
  const kernel = matrixUnitsKernel(units, tile, layout);
  return { tile, kernel, scaled, parameters: { aLine: aLines.line, bLine: bLines.line } };
}

/** `batch` is the shape that the leading axes of both broadcast to. */
export function matmul(a: Tensor, b: Tensor, batch: readonly number[], dtype: DType = a.dtype): Tensor {
  const [rows, inner] = a.shape.slice(-2);
  const columns = b.shape[b.shape.length - 1];
  const out = empty([...batch, rows, columns], a.device, dtype);
  if (out.size === 0) return out;
  const device = webgpuDevice(a);
  const [aRow, aInner] = a.strides.slice(-2);
  const [bInner, bColumn] = b.strides.slice(-2);
  const whole = (x: Tensor) => ({ strides: broadcastStrides(x, [...batch, ...x.shape.slice(-2)]).slice(0, -2) });
  const matrices = places(batch, { a: whole(a), b: whole(b) });
  const fast = onMatrixUnits(a, b, batch, dtype);
  const vectors = fast !== undefined;
  const own = fast?.parameters ?? { aRow, aInner, bInner, bColumn };
  const count = sizeOf(batch);
  const rowTiles = rows > 64 && Math.ceil(rows / 128) * Math.ceil(columns / 64) * count >= MANY ? 2 : 1;
  const source: KernelSource = {
    name: `matmul-${matrices.layout}${fast ? "-matrix-units" : ""}`,
    constants: fast?.kernel.constants ?? {
      A_ACROSS: aRow === 1 && aInner !== 1,
      B_ACROSS: bColumn === 1,
      EVEN: columns % 2 === 0,
      ROW_TILES: rowTiles,
    },
    tensors: {
      a: { dtype: a.dtype, access: "read", vectors },
      b: { dtype: b.dtype, access: "read", vectors },
      out: { dtype: out.dtype, access: "write", vectors },
      ...fast?.kernel.tensors,
    },
    parameters: {
      ...{ rows: "u32", columns: "u32", inner: "u32" },
      ...(Object.fromEntries(Object.keys(own).map((name) => [name, "u32"])) as Record<string, "u32">),
      ...matrices.fields,
    },
    body: () => (fast?.kernel.body() ?? body(rowTiles)) + matrices.text,
  };
  const scales: Record<string, Tensor> = fast?.scaled ? { aLargest: largest(a), bLargest: largest(b) } : {};
  const { rows: tileRows, columns: tileColumns } = fast?.tile ?? { rows: 64 * rowTiles, columns: 64 };
  device.dispatch(source, {
    tensors: { a, b, out, ...scales },
    parameters: { rows, columns, inner, ...own, ...matrices.parameters },
    workgroups: [Math.ceil(columns / tileColumns), Math.ceil(rows / tileRows), count],
  });
  for (const scale of Object.values(scales)) scale.dispose();
  return out;
}
