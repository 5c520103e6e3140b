import type { Tensor } from "../../tensor/tensor.js";

/**
 * Throws `explain(at, value)` where a contiguous f32 tensor holds a value above 0: the first one, `at` counted in
 * elements. NaN passes. A device that can only read asynchronously looks in check mode alone, and its next read or sync
 * throws.
 */
export type GateCheck = (logG: Tensor, explain: (at: number, value: number) => Error) => void;
