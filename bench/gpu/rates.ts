import type { GpuDescription } from "../machine.js";

/** What a machine does at best: operations a second in half and single precision, bytes a second. */
export interface Rates {
  /** Matrix products of halves with f32 sums; a multiply-add counts as two. */
  matrix: number;
  /** f32 multiply-adds outside of matrix units. */
  vector: number;
  memory: number;
}

/**
 * Of adapters that figures are published for. H200: bf16 8192³ by cuBLAS and a copy in device memory, both measured,
 * f32 by the data sheet. H100 (SXM): the same chip's arithmetic, and the data sheet's memory at the H200's share of it.
 */
const KNOWN: readonly [RegExp, Rates][] = [
  [/h200/i, { matrix: 787e12, vector: 67e12, memory: 4.2e12 }],
  [/h100/i, { matrix: 787e12, vector: 67e12, memory: 2.9e12 }],
];

export function ratesOf({ adapter, driver }: GpuDescription): Rates | undefined {
  return KNOWN.find(([name]) => name.test(`${adapter} ${driver}`))?.[1];
}

/** Milliseconds below which the work can't be done, where the machine's rates are known. */
export function floorOf(
  work: { operations: number; bytes: number },
  rates: Rates | undefined,
  unit: "matrix" | "vector" = "matrix",
): number | undefined {
  return rates && 1000 * Math.max(work.operations / rates[unit], work.bytes / rates.memory);
}
