import { PANEL, roundUp } from "../../../devices/wasm/tiles.js";
import type { DType } from "../../../tensor/dtype.js";

/** What a module is specialised to. */
export interface Dimensions {
  readonly headDim: number;
  readonly valueDim: number;
  readonly dtype: DType;
  /** Both padded to whole panels. */
  readonly d: number;
  readonly e: number;
}

export function dimensionsOf(headDim: number, valueDim: number, dtype: DType): Dimensions {
  return { headDim, valueDim, dtype, d: roundUp(headDim, PANEL), e: roundUp(valueDim, PANEL) };
}

/** Inputs that the forward and the backward share. Strides are in bytes. */
export const SEQUENCE_FIELDS = {
  q: "i32",
  k: "i32",
  v: "i32",
  qBatch: "i32",
  qTime: "i32",
  qHead: "i32",
  kBatch: "i32",
  kTime: "i32",
  kHead: "i32",
  vBatch: "i32",
  vTime: "i32",
  vHead: "i32",
  time: "i32",
  /** Groups of 16 tokens: T / 16, rounded up. */
  groups: "i32",
  queryHeads: "i32",
  heads: "i32",
  /** Query heads of one key head. */
  group: "i32",
  /** The sign of scale, or 0: what queries are multiplied by. */
  sign: "f32",
  /** |scale| · log₂e: what differences of scores are multiplied by to be powers of 2. */
  unit: "f32",
} as const;
