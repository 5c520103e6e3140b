import type { Tensor } from "../../tensor/tensor.js";

/**
 * Where a contiguous f32 tensor first holds a value above 0: { at, value } with `at` counted in elements, or undefined
 * where none does. NaN passes. A device that can only read asynchronously answers undefined, except in check mode.
 */
export type GateCheck = (logG: Tensor) => { at: number; value: number } | undefined;
