import { DTYPE_BYTES, type DType } from "../../tensor/dtype.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { Storage } from "../device.js";
import type { WebGpuDevice, WebGpuStorage } from "./device.js";
import type { KernelSource } from "./kernel.js";

/** Makes the error of an element, counted from the tensor's first, and of its value. */
type Explain = (at: number, value: number) => Error;

/** No search has found anything. */
const NOTHING = 0x7fffffff;

/**
 * Check mode on a device that can only read later: searches are dispatched among the work and numbered; the first that
 * finds a fault leaves its number, the place and the value in a verdict, at which the next read looks.
 */
export class Checks {
  #searches: ((at: number, bits: number) => Error)[] = [];
  #verdict: WebGpuStorage | undefined;

  constructor(private readonly device: WebGpuDevice) {}

  /** Where a NaN is: which operation made it is all that counts. */
  searchNaN(operation: string, storage: Storage): void {
    if (storage.dtype === "i32" || storage.length === 0) return;
    const words = Math.floor((storage.length * DTYPE_BYTES[storage.dtype]) / 4);
    const odd = storage.dtype !== "f32" && storage.length % 2 === 1 ? 1 : 0;
    this.device.dispatch(nanSearch(storage.dtype), {
      tensors: { values: whole(storage), verdict: this.#open() },
      parameters: { words, odd, number: this.#number(() => new Error(`${operation}: produced a NaN`)) },
      workgroups: [Math.min(Math.ceil((words + odd) / 256), 1024)],
    });
  }

  /** The first element of a contiguous f32 or i32 tensor for which `rule` holds: WGSL, of `value` and `limit`. */
  search(values: Tensor, rule: string, limit: number, explain: Explain): void {
    if (values.size === 0) return;
    const integers = values.dtype === "i32";
    const number = this.#number((at, bits) =>
      explain(at, integers ? bits : new Float32Array(Int32Array.of(bits).buffer)[0]),
    );
    this.device.dispatch(valueSearch(values.dtype, rule), {
      tensors: { values, verdict: this.#open() },
      parameters: { count: values.size, limit, number },
      workgroups: [1],
    });
  }

  /** Throws the error of the first fault since the last call. */
  async throwFound(): Promise<void> {
    const verdict = this.#verdict;
    if (!verdict) return;
    const searches = this.#searches;
    this.#verdict = undefined;
    this.#searches = [];
    const [first, at, bits] = await this.device.read(verdict, 0, 3);
    verdict.release();
    if (first !== NOTHING) throw searches[first](at, bits);
  }

  #number(explain: (at: number, bits: number) => Error): number {
    return this.#searches.push(explain) - 1;
  }

  #open() {
    if (!this.#verdict) {
      this.#verdict = this.device.allocate("i32", 3) as WebGpuStorage;
      this.device.write(this.#verdict, [NOTHING, 0, 0]);
    }
    return whole(this.#verdict);
  }
}

function whole(storage: Storage) {
  return { storage, dtype: storage.dtype, shape: [storage.length], strides: [1], offset: 0 };
}

const nanSearch = (dtype: DType): KernelSource => ({
  name: "nan-search",
  constants: { HALVES: dtype !== "f32", INFINITY: dtype === "bf16" ? 0x7f80 : 0x7c00 },
  tensors: { values: { dtype: "i32", access: "read" }, verdict: { dtype: "i32", access: "write" } },
  parameters: { words: "u32", odd: "u32", number: "u32" },
  body: () => `
// The last word of an odd number of halves holds only one.
fn is_nan(word: u32, both: bool) -> bool {
  if (!HALVES) { return (word & 0x7fffffffu) > 0x7f800000u; }
  return (word & 0x7fffu) > INFINITY || (both && ((word >> 16u) & 0x7fffu) > INFINITY);
}
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  // Words are counted here whatever the dtype: a tensor's first element is at an even half.
  let start = select(P.values_at, P.values_at / 2u, HALVES);
  var found = false;
  for (var k = id.x; k < P.words + P.odd; k += groups.x * 256u) {
    found = found || is_nan(bitcast<u32>(values[start + k]), k < P.words);
  }
  // Racing invocations all write a number no later one can improve: operations run in order.
  if (found && verdict[0] > i32(P.number)) { verdict[0] = i32(P.number); }
}`,
});

/** One workgroup, so that it agrees on the first without atomics: check mode may be slow. */
const valueSearch = (dtype: DType, rule: string): KernelSource => ({
  name: `search ${rule}`,
  constants: {},
  tensors: { values: { dtype, access: "read" }, verdict: { dtype: "i32", access: "write" } },
  parameters: { count: "u32", limit: "i32", number: "u32" },
  body: () => `
var<workgroup> first: array<u32, 256>;
@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
  let limit = P.limit;
  var own = P.count;
  for (var i = lane; i < P.count; i += 256u) {
    let value = load_values(i);
    if (${rule}) { own = i; break; }
  }
  first[lane] = own;
  workgroupBarrier();
  if (lane > 0u) { return; }
  for (var k = 1u; k < 256u; k++) { own = min(own, first[k]); }
  if (own == P.count || verdict[0] <= i32(P.number)) { return; }
  verdict[0] = i32(P.number);
  verdict[1] = i32(own);
  verdict[2] = bitcast<i32>(load_values(own));
}`,
});
