import type { Device } from "../../devices/device.js";
import type { Tensor } from "../../tensor/tensor.js";

/**
 * logits [R, ≥ V], contiguous, f32 (on webgpu any float dtype); columns from V = `classes` on are no classes, their
 * gradient is 0. targets [R] i32, contiguous, from 0 to V − 1, or −1 for rows that do not count.
 * losses [R] f32: log Σ_j exp(logits[j]) − logits[target], 0 where the target is −1. Where `scale` is given, logits are
 * overwritten by their gradient, (softmax(logits) − onehot(target)) · scale, 0 where the target is −1.
 */
export type CrossEntropyRows = (logits: Tensor, targets: Tensor, classes: number, scale: number | undefined) => Tensor;

/** How linearCrossEntropy holds logits on a kind of device. */
export interface LogitsLayout {
  /** Bytes of logits that are held at a time. */
  bytes: (device: Device) => number;
  /** In x's dtype; otherwise in f32. */
  asX: boolean;
  /** Columns for so many classes. */
  columns: (classes: number) => number;
}

export function checkTarget(target: number, row: number, classes: number): void {
  if (!(target >= -1 && target < classes)) throw noClass(target, row, classes);
}

export function noClass(target: number, row: number, classes: number): RangeError {
  return new RangeError(
    `crossEntropy: targets must be from 0 to ${classes - 1}, or -1, got ${target} at ${row}; check the tokenizer`,
  );
}
