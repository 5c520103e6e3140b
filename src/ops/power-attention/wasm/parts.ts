import type { FunctionHandle, ModuleBuilder } from "../../../devices/wasm/emitter.js";
import {
  writeDotLines,
  writeLargest,
  writeLoadRows,
  writePanels,
  writeReciprocalPower,
  writeRowFactors,
  writeScaleRows,
  writeStoreRows,
  writeTranspose,
  writeUntranspose,
} from "../../../devices/wasm/pack.js";
import {
  LINE,
  PANEL,
  roundUp,
  writeGroupTimesGroup,
  writeGroupTimesPanels,
  writeRowsTimesGroup,
  writeRowsTimesPanels,
} from "../../../devices/wasm/tiles.js";
import type { DType } from "../../../tensor/dtype.js";
import { SUB_BLOCK, writeExpand, writeExpandGradient } from "./expand.js";
import { writeAdvance, writeGates } from "./gates.js";
import {
  writeDiagonalDecay,
  writeDiagonalTimesPanels,
  writeWeigh,
  writeWeighDiagonal,
  writeWeighGradient,
  writeWeighGradientDiagonal,
} from "./intra.js";
import { writeLoadState, writePackState, writeStoreState, writeUpdateState } from "./state.js";

/** Tokens whose features are expanded at once for a state update. */
export const TOKEN_BLOCK = 256;

/** What a module is specialised to. */
export interface Kernel {
  readonly headDim: number;
  readonly valueDim: number;
  readonly degree: number;
  /** Of q, k and v. */
  readonly dtype: DType;
  /** Of the output and its gradient. */
  readonly outDtype: DType;
}

/** Dimensions that follow from a kernel's. */
export interface Dimensions extends Kernel {
  /** Columns padded to whole panels. */
  readonly d: number;
  readonly e: number;
  /** Features in a block of the query side: its slice of the state stays in the first-level cache. */
  readonly block: number;
}

export function dimensionsOf(kernel: Kernel): Dimensions {
  const d = roundUp(kernel.headDim, PANEL);
  const e = roundUp(kernel.valueDim, PANEL);
  const fits = Math.floor((24 * 1024) / (4 * e + LINE) / SUB_BLOCK) * SUB_BLOCK;
  return { ...kernel, d, e, block: Math.max(SUB_BLOCK, Math.min(256, fits)) };
}

/** Functions, each written into the module when it is first asked for. */
export class Parts {
  readonly #made = new Map<string, FunctionHandle>();

  constructor(
    readonly m: ModuleBuilder,
    readonly dim: Dimensions,
  ) {}

  #part(name: string, write: () => FunctionHandle): FunctionHandle {
    let handle = this.#made.get(name);
    if (!handle) {
      handle = write();
      this.#made.set(name, handle);
    }
    return handle;
  }

  loadRows(width: number, padded: number, dtype = this.dim.dtype) {
    const name = `load-${dtype}-${width}`;
    return this.#part(name, () => writeLoadRows(this.m, dtype, width, padded, name));
  }
  storeRows(width: number, padded: number, dtype = this.dim.dtype) {
    const name = `store-${dtype}-${width}`;
    return this.#part(name, () => writeStoreRows(this.m, dtype, width, padded, name));
  }
  transpose(padded: number) {
    const name = `transpose-${padded}`;
    return this.#part(name, () => writeTranspose(this.m, padded, name));
  }
  panels(padded: number) {
    const name = `panels-${padded}`;
    return this.#part(name, () => writePanels(this.m, padded, name));
  }
  scaleRows(padded: number) {
    const name = `scale-${padded}`;
    return this.#part(name, () => writeScaleRows(this.m, padded, name));
  }
  largest(padded: number) {
    const name = `largest-${padded}`;
    return this.#part(name, () => writeLargest(this.m, padded, name));
  }
  reciprocalPower() {
    return this.#part("reciprocal-power", () => writeReciprocalPower(this.m));
  }
  rowFactors(padded: number) {
    const reciprocal = this.reciprocalPower();
    const name = `factors-${padded}`;
    return this.#part(name, () => writeRowFactors(this.m, padded, reciprocal, name));
  }
  updateState() {
    return this.#part("update-state", () => writeUpdateState(this));
  }
  loadState() {
    return this.#part("load-state", () => writeLoadState(this));
  }
  storeState() {
    return this.#part("store-state", () => writeStoreState(this));
  }
  packState() {
    return this.#part("pack-state", () => writePackState(this));
  }
  rowsTimesGroup(depth: number, stride: number) {
    const name = `rows-times-group-${depth}-${stride}`;
    return this.#part(name, () => writeRowsTimesGroup(this.m, depth, stride, name));
  }
  untranspose(padded: number) {
    const name = `untranspose-${padded}`;
    return this.#part(name, () => writeUntranspose(this.m, padded, name));
  }
  gates() {
    return this.#part("gates", () => writeGates(this.m));
  }
  advance() {
    return this.#part("advance", () => writeAdvance(this.m));
  }
  expand(mode: "plain" | "sum" | "dot") {
    return this.#part(`expand-${mode}`, () => writeExpand(this.m, this.dim.degree, mode));
  }
  expandGradient() {
    return this.#part("expand-gradient", () => writeExpandGradient(this.m, this.dim.degree));
  }
  groupTimesPanels(columns: number, lineStride = LINE) {
    const name = `group-times-panels-${columns}-${lineStride}`;
    return this.#part(name, () => writeGroupTimesPanels(this.m, columns, lineStride, name));
  }
  rowsTimesPanels(columns: number, stride: number) {
    const name = `rows-times-panels-${columns}-${stride}`;
    return this.#part(name, () => writeRowsTimesPanels(this.m, columns, stride, name));
  }
  groupTimesGroup(depth: number, stride: number) {
    const name = `group-times-group-${depth}-${stride}`;
    return this.#part(name, () => writeGroupTimesGroup(this.m, depth, stride, name));
  }
  weigh() {
    return this.#part("weigh", () => writeWeigh(this.m, this.dim.degree));
  }
  weighDiagonal() {
    return this.#part("weigh-diagonal", () => writeWeighDiagonal(this.m, this.dim.degree));
  }
  weighGradient() {
    return this.#part("weigh-gradient", () => writeWeighGradient(this.m, this.dim.degree));
  }
  weighGradientDiagonal() {
    return this.#part("weigh-gradient-diagonal", () => writeWeighGradientDiagonal(this.m, this.dim.degree));
  }
  dotLines() {
    return this.#part("dot-lines", () => writeDotLines(this.m));
  }
  diagonalDecay() {
    return this.#part("diagonal-decay", () => writeDiagonalDecay(this.m));
  }
  diagonalTimesPanels(columns: number) {
    const name = `diagonal-times-panels-${columns}`;
    return this.#part(name, () => writeDiagonalTimesPanels(this.m, columns));
  }
}
