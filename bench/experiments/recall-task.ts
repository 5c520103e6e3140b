import type { Generator } from "../../src/index.js";

export const KEYS = 1024;
export const VALUES = 64;
/** In place of a value: a key alone, which asks. */
export const NO_VALUE = VALUES;

export interface Sequences {
  /** [batch, 2 · pairs] each. */
  shape: [number, number];
  keys: Int32Array;
  values: Int32Array;
  /** What is to be recalled, −1 where nothing is asked. */
  targets: Int32Array;
}

/**
 * Multi-query associative recall: pairs of a key and a value, then every key once more, in another order, each to be
 * answered with its value. A pair is one token, so that attention has nothing to do but to remember.
 */
export function sequences(pairs: number, batch: number, generator: Generator): Sequences {
  const length = 2 * pairs;
  const keys = new Int32Array(batch * length);
  const values = new Int32Array(batch * length).fill(NO_VALUE);
  const targets = new Int32Array(batch * length).fill(-1);
  for (let b = 0; b < batch; b++) {
    const told = b * length;
    const asked = told + pairs;
    keys.set(drawn(pairs, KEYS, generator), told);
    for (const [k, from] of drawn(pairs, pairs, generator).entries()) {
      values[told + from] = generator.integer(VALUES);
      keys[asked + k] = keys[told + from];
      targets[asked + k] = values[told + from];
    }
  }
  return { shape: [batch, length], keys, values, targets };
}

/** `count` different integers below `n`, in random order. */
function drawn(count: number, n: number, generator: Generator): Int32Array {
  const list = Int32Array.from({ length: n }, (_, k) => k);
  for (let k = 0; k < count; k++) {
    const other = k + generator.integer(n - k);
    [list[k], list[other]] = [list[other], list[k]];
  }
  return list.subarray(0, count);
}
