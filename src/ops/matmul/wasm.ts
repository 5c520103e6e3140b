import { load1, load4, store1, store4 } from "../../devices/wasm/convert.js";
import { addressOf, type WasmDevice, wasmDevice } from "../../devices/wasm/device.js";
import {
  type Expr,
  type FunctionBuilder,
  type FunctionHandle,
  f32x4,
  i32,
  type Local,
  type ModuleBuilder,
  v128,
} from "../../devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../../devices/wasm/kernel.js";
import { collapse, type Operand, stridesOver } from "../../devices/wasm/rows.js";
import { DTYPE_BYTES, type DType } from "../../tensor/dtype.js";
import { sizeOf } from "../../tensor/shape.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { microFunction, TILE_COLUMNS, TILE_ROWS } from "./micro.js";
import { type Contiguous, packFunction } from "./pack.js";

/** One item of work: this many rows and columns of one product, `BLOCK_DEPTH` terms at a time. */
const BLOCK_ROWS = 64;
const BLOCK_COLUMNS = 256;
const BLOCK_DEPTH = 256;

/** What happens to a sum before it is stored: out = activation(sum + bias[column]). */
export interface Epilogue {
  /** `[n]` */
  bias?: Operand;
  /** `key` names the function; it maps four lanes (a local). */
  activation?: { key: string; write: (f: FunctionBuilder, x: Local) => Expr };
}

function contiguousIn(laneStep: number, depthStep: number): Contiguous {
  return laneStep === 1 ? "lanes" : depthStep === 1 ? "depth" : "none";
}

/** Offset in bytes of the operand's matrix number `index`, from the fields `${name}${axis}` and `extent${axis}`. */
function matrixOffset(f: FunctionBuilder, a: Record<string, Expr>, name: string, rank: number, index: Local): Local {
  const rest = f.local("i32", index);
  const offset = f.local("i32", 0);
  for (let axis = rank - 1; axis >= 0; axis--) {
    offset.add(i32.mul(i32.remU(rest, a[`extent${axis}`]), a[`${name}${axis}`]));
    rest.set(i32.divU(rest, a[`extent${axis}`]));
  }
  return offset;
}

/**
 * out[…, m, n] = activation(a[…, m, k] · b[…, k, n] + bias[n]), sums in f32.
 *
 * Operands are views with any strides (a transposed view costs nothing more) and any float dtypes; leading axes of a
 * and b broadcast to those of out. The last axis of out must be contiguous.
 */
export function multiply(device: WasmDevice, out: Operand, a: Operand, b: Operand, epilogue: Epilogue = {}): void {
  const batch = out.shape.slice(0, -2);
  const [m, n] = out.shape.slice(-2);
  const k = a.shape[a.shape.length - 1];
  if (sizeOf(out.shape) === 0) return;
  const last = (x: Operand) => x.strides.slice(-2);
  const lead = (x: Operand) => stridesOver({ shape: x.shape.slice(0, -2), strides: x.strides.slice(0, -2) }, batch);
  const walk = collapse(batch, [lead(out), lead(a), lead(b)]);
  const rank = walk.shape.length;
  const [outRow] = last(out);
  const [aRow, aColumn] = last(a);
  const [bRow, bColumn] = last(b);

  // Matrices of b that are not stretched over the batch are packed once each.
  const distinct = walk.strides[2].every((step) => step === 0) ? 1 : sizeOf(walk.shape);
  const panels = Math.ceil(n / TILE_COLUMNS);
  const matrixBytes = panels * TILE_COLUMNS * k * 4;
  const packed = device.reserve(Math.max(distinct * matrixBytes, 64), "matmul's second factor, packed");
  try {
    const fields: Record<string, "i32"> = {};
    const values: Record<string, number> = {};
    const put = (name: string, value: number) => {
      fields[name] = "i32";
      values[name] = value;
    };
    for (let axis = 0; axis < rank; axis++) {
      put(`extent${axis}`, walk.shape[axis]);
      put(`out${axis}`, walk.strides[0][axis] * DTYPE_BYTES[out.dtype]);
      put(`a${axis}`, walk.strides[1][axis] * DTYPE_BYTES[a.dtype]);
      put(`b${axis}`, walk.strides[2][axis] * DTYPE_BYTES[b.dtype]);
    }
    put("m", m);
    put("n", n);
    put("k", k);
    put("panels", panels);
    put("packed", packed);
    put("packedStep", distinct === 1 ? 0 : matrixBytes);
    put("bAddress", addressOf(b));
    put("bRow", bRow * DTYPE_BYTES[b.dtype]);
    put("bColumn", bColumn * DTYPE_BYTES[b.dtype]);
    put("aAddress", addressOf(a));
    put("aRow", aRow * DTYPE_BYTES[a.dtype]);
    put("aColumn", aColumn * DTYPE_BYTES[a.dtype]);
    put("outAddress", addressOf(out));
    put("outRow", outRow * DTYPE_BYTES[out.dtype]);
    const { bias, activation } = epilogue;
    put("bias", bias ? addressOf(bias) : 0);
    const rowsPerItem = Math.min(BLOCK_ROWS, Math.ceil(m / TILE_ROWS) * TILE_ROWS);
    const columnsPerItem = Math.min(BLOCK_COLUMNS, panels * TILE_COLUMNS);
    const depthPerBlock = Math.min(BLOCK_DEPTH, Math.max(k, 1));
    put("rowsPerItem", rowsPerItem);
    put("columnsPerItem", columnsPerItem);
    put("depthPerBlock", depthPerBlock);
    const rowItems = Math.ceil(m / rowsPerItem);
    const columnItems = Math.ceil(n / columnsPerItem);
    put("rowItems", rowItems);
    put("columnItems", columnItems);
    const layout = new Arguments(fields);
    const formA = contiguousIn(aRow, aColumn);
    const formB = contiguousIn(bColumn, bRow);
    const epilogueKey = `${bias?.dtype ?? "no"} bias, ${activation?.key ?? "no"} activation`;
    const key = `matmul ${out.dtype} ${a.dtype} ${formA} ${b.dtype} ${formB} rank ${rank} ${epilogueKey}`;
    const module = device.module(key, (builder) => {
      packItems(builder, layout, packFunction(builder, TILE_COLUMNS, b.dtype, formB), rank);
      const packA = packFunction(builder, TILE_ROWS, a.dtype, formA);
      const finish = finishFunction(builder, out.dtype, bias?.dtype, activation);
      tileItems(
        builder,
        layout,
        { packA, micro: microFunction(builder), finish },
        rank,
        DTYPE_BYTES[out.dtype],
        bias ? DTYPE_BYTES[bias.dtype] : 0,
      );
    });
    device.run(module, "packB", layout, values, distinct * panels);
    const scratch = 4 * rowsPerItem * (columnsPerItem + depthPerBlock);
    device.run(module, "tiles", layout, values, sizeOf(walk.shape) * rowItems * columnItems, scratch);
  } finally {
    device.release(packed);
  }
}

/** Each item packs one panel of columns of b. */
function packItems(m: ModuleBuilder, layout: Arguments<Record<string, "i32">>, pack: FunctionHandle, rank: number) {
  m.function(
    "packB",
    KERNEL_PARAMS,
    (f, args, item) => {
      const a = layout.fieldsAt(args);
      const matrix = f.local("i32", i32.divU(item, a.panels));
      const column = f.local("i32", i32.remU(item, a.panels).times(TILE_COLUMNS));
      const source = f.local("i32", i32.add(a.bAddress, matrixOffset(f, a, "b", rank, matrix)));
      source.add(i32.mul(column, a.bColumn));
      const panel = i32.add(a.packed, i32.mul(item, a.k).times(4 * TILE_COLUMNS));
      const lanes = i32.min(TILE_COLUMNS, i32.sub(a.n, column));
      f.call(pack, source, a.bColumn, a.bRow, lanes, a.k, panel);
    },
    { exported: true },
  );
}

/** Each item makes one block of out: sums in the thread's scratch memory, then stored. */
function tileItems(
  m: ModuleBuilder,
  layout: Arguments<Record<string, "i32">>,
  fn: Record<"packA" | "micro" | "finish", FunctionHandle>,
  rank: number,
  outBytes: number,
  biasBytes: number,
) {
  m.function(
    "tiles",
    KERNEL_PARAMS,
    (f, args, item, scratch) => {
      const a = layout.fieldsAt(args);
      const tiles = i32.mul(a.rowItems, a.columnItems);
      const matrix = f.local("i32", i32.divU(item, tiles));
      const tile = f.local("i32", i32.remU(item, tiles));
      const row = f.local("i32", i32.mul(i32.divU(tile, a.columnItems), a.rowsPerItem));
      const column = f.local("i32", i32.mul(i32.remU(tile, a.columnItems), a.columnsPerItem));
      const rows = f.local("i32", i32.min(a.rowsPerItem, i32.sub(a.m, row)));
      const columns = f.local("i32", i32.min(a.columnsPerItem, i32.sub(a.n, column)));
      const rowStep = f.local("i32", a.columnsPerItem.times(4));
      const panelsA = f.local("i32", i32.add(scratch, i32.mul(a.rowsPerItem, rowStep)));
      const source = f.local("i32", i32.add(a.aAddress, matrixOffset(f, a, "a", rank, matrix)));
      source.add(i32.mul(row, a.aRow));
      const panelB = f.local("i32", i32.add(a.packed, i32.mul(matrix, a.packedStep)));
      panelB.add(i32.mul(column, a.k).times(4));
      const start = f.local("i32", 0);
      const depth = f.local("i32");
      const i = f.local("i32");
      const j = f.local("i32");
      const panelA = f.local("i32");
      const target = f.local("i32");
      f.doWhile(
        () => {
          depth.set(i32.min(a.depthPerBlock, i32.sub(a.k, start)));
          panelA.set(panelsA);
          f.for(
            0,
            rows,
            TILE_ROWS,
            () => {
              const lanes = i32.min(TILE_ROWS, i32.sub(rows, i));
              const from = i32.add(i32.add(source, i32.mul(i, a.aRow)), i32.mul(start, a.aColumn));
              f.call(fn.packA, from, a.aRow, a.aColumn, lanes, depth, panelA);
              panelA.add(depth.times(4 * TILE_ROWS));
            },
            i,
          );
          f.for(
            0,
            columns,
            TILE_COLUMNS,
            () => {
              panelA.set(panelsA);
              target.set(i32.add(scratch, j.times(4)));
              const b = i32.add(panelB, i32.add(i32.mul(j, a.k).times(4), start.times(4 * TILE_COLUMNS)));
              f.for(
                0,
                rows,
                TILE_ROWS,
                () => {
                  f.call(fn.micro, depth, panelA, b, target, rowStep, start);
                  panelA.add(depth.times(4 * TILE_ROWS));
                  target.add(rowStep.times(TILE_ROWS));
                },
                i,
              );
            },
            j,
          );
          start.add(a.depthPerBlock);
        },
        () => i32.lt(start, a.k),
      );
      target.set(i32.add(a.outAddress, matrixOffset(f, a, "out", rank, matrix)));
      target.add(i32.add(i32.mul(row, a.outRow), column.times(outBytes)));
      f.call(fn.finish, scratch, rowStep, target, a.outRow, rows, columns, i32.add(a.bias, column.times(biasBytes)));
    },
    { exported: true },
  );
}

/** Emits `finish(sums, rowStep, out, outRow, rows, columns, bias)`, which stores a block. */
function finishFunction(
  m: ModuleBuilder,
  dtype: DType,
  biasDType: DType | undefined,
  activation: Epilogue["activation"],
): FunctionHandle {
  const params = [
    ["sums", "i32"],
    ["rowStep", "i32"],
    ["out", "i32"],
    ["outRow", "i32"],
    ["rows", "i32"],
    ["columns", "i32"],
    ["bias", "i32"],
  ] as const;
  return m.function("finish", params, (f, sums, rowStep, out, outRow, rows, columns, bias) => {
    const x = f.local("v128");
    const left = f.local("i32");
    const [from, to, addend] = f.locals("i32", 3);
    const finished = () => (activation ? activation.write(f, x) : x);
    const advance = (count: number) => {
      from.add(4 * count);
      to.add(DTYPE_BYTES[dtype] * count);
      if (biasDType) addend.add(DTYPE_BYTES[biasDType] * count);
      left.set(i32.sub(left, count));
    };
    f.doWhile(() => {
      from.set(sums);
      to.set(out);
      addend.set(bias);
      left.set(columns);
      f.while(i32.geU(left, 4), () => {
        const sum = v128.load(from);
        x.set(biasDType ? f32x4.add(sum, load4(f, biasDType, addend)) : sum);
        store4(f, dtype, to, finished());
        advance(4);
      });
      f.while(left, () => {
        const sum = v128.load32Splat(from);
        x.set(biasDType ? f32x4.add(sum, f32x4.splat(load1(f, biasDType, addend))) : sum);
        store1(f, dtype, to, f32x4.extract(finished(), 0));
        advance(1);
      });
      sums.add(rowStep);
      out.add(outRow);
      rows.set(i32.sub(rows, 1));
    }, rows);
  });
}

/** `batch` is the shape that the leading axes of both broadcast to. */
export function matmul(a: Tensor, b: Tensor, batch: readonly number[], dtype: DType): Tensor {
  const out = empty([...batch, a.shape[a.shape.length - 2], b.shape[b.shape.length - 1]], a.device, dtype);
  multiply(wasmDevice(a), out, a, b);
  return out;
}
