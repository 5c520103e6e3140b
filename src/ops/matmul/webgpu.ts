import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { broadcastStrides, places } from "../../devices/webgpu/map.js";
import { matricesOf } from "../../devices/webgpu/matrix-text.js";
import { TILES } from "../../devices/webgpu/tiles.js";
import type { DType } from "../../tensor/dtype.js";
import { sizeOf } from "../../tensor/shape.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { largest } from "../reduce/webgpu.js";
import { chooseTile, type MatmulTile, matrixUnitsKernel } from "./webgpu-matrix-units.js";

const body = `${TILES}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  let r = lane & 15u;
  let c = lane >> 4u;
  let row0 = id.y * TILE;
  let column0 = id.x * TILE;
  let a0 = place_a(id.z);
  let b0 = place_b(id.z);
  // Lanes next to each other read elements next to each other: along the inner axis, or across it.
  let aStep = select(r, c, A_ACROSS);
  let aGroup = select(c, r, A_ACROSS);
  let bStep = select(r, c, B_ACROSS);
  let bGroup = select(c, r, B_ACROSS);
  var acc = array<vec4f, 4>();
  for (var at = 0u; at < P.inner; at += STEP) {
    var x = vec4f(0);
    var y = vec4f(0);
    for (var j = 0u; j < 4u; j++) {
      let row = row0 + 4u * aGroup + j;
      let column = column0 + 4u * bGroup + j;
      if (row < P.rows && at + aStep < P.inner) { x[j] = load_a(a0 + row * P.aRow + (at + aStep) * P.aInner); }
      if (column < P.columns && at + bStep < P.inner) { y[j] = load_b(b0 + column * P.bColumn + (at + bStep) * P.bInner); }
    }
    workgroupBarrier();
    left[slot(aStep, aGroup)] = x;
    right[slot(bStep, bGroup)] = y;
    workgroupBarrier();
    multiply(&acc, r, c);
  }
  for (var i = 0u; i < 4u; i++) {
    let row = row0 + 4u * r + i;
    if (row >= P.rows) { break; }
    for (var j = 0u; j < 4u; j += 2u) {
      let column = column0 + 4u * c + j;
      if (column >= P.columns) { break; }
      let to = (id.z * P.rows + row) * P.columns + column;
      if (EVEN) { store2_out(to, acc[j][i], acc[j + 1u][i]); }
      else {
        store_out(to, acc[j][i]);
        if (column + 1u < P.columns) { store_out(to + 1u, acc[j + 1u][i]); }
      }
    }
  }
}`;

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
  const source: KernelSource = {
    name: `matmul-${matrices.layout}${fast ? "-matrix-units" : ""}`,
    constants: fast?.kernel.constants ?? {
      A_ACROSS: aRow === 1 && aInner !== 1,
      B_ACROSS: bColumn === 1,
      EVEN: columns % 2 === 0,
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
    body: (fast?.kernel.body ?? body) + matrices.text,
  };
  const scales: Record<string, Tensor> = fast?.scaled ? { aLargest: largest(a), bLargest: largest(b) } : {};
  const { rows: tileRows, columns: tileColumns } = fast?.tile ?? { rows: 64, columns: 64 };
  device.dispatch(source, {
    tensors: { a, b, out, ...scales },
    parameters: { rows, columns, inner, ...own, ...matrices.parameters },
    workgroups: [Math.ceil(columns / tileColumns), Math.ceil(rows / tileRows), sizeOf(batch)],
  });
  for (const scale of Object.values(scales)) scale.dispose();
  return out;
}
