import {
  DTYPE_BYTES,
  type DType,
  fromBF16Bits,
  fromF16Bits,
  type TypedArray,
  toBF16Bits,
  toF16Bits,
} from "../../tensor/dtype.js";
import type { Tensor } from "../../tensor/tensor.js";
import { Device, type DeviceMemory, Storage } from "../device.js";
import { nodeModule } from "../node.js";
import { ModuleBuilder } from "./emitter.js";
import { Heap } from "./heap.js";
import type { Arguments, ArgumentValues } from "./kernel.js";
import { ThreadPool } from "./threads.js";
import { CONTROL } from "./worker-source.js";

const PAGE = 65536;
const GIB = 2 ** 30;
/** After the control block: the arguments of the job in progress. */
const ARGS_ADDRESS = 4 * CONTROL.words;
const ARGS_BYTES = 1024;

export interface WasmOptions {
  /** Threads, this one included. Default: POWER_ATTENTION_THREADS, else the cores the system grants, at most 16. */
  threads?: number;
  /** Most bytes the device may take. Default 4 GiB, WebAssembly's limit. */
  maxMemory?: number;
  /** Stop at the first operation that produces a NaN, and name it. Default false. */
  check?: boolean;
}

class WasmStorage extends Storage {
  constructor(
    readonly device: WasmDevice,
    readonly dtype: DType,
    readonly length: number,
    readonly address: number,
  ) {
    super();
  }

  protected override free(): void {
    this.device.release(this.address);
  }
}

/** A compiled module and the functions it exports. */
export interface WasmModule {
  readonly id: number;
  readonly address: number;
  readonly length: number;
  readonly exports: readonly string[];
  readonly functions: Readonly<Record<string, (args: number, item: number, scratch: number) => void>>;
}

let relaxedSimd: boolean | undefined;

/** Whether the engine takes fused multiply-adds; one without them rejects the whole module. */
function hasRelaxedSimd(): boolean {
  if (relaxedSimd === undefined) {
    const m = new ModuleBuilder({ shared: false, relaxed: true });
    m.function("probe", [["x", "v128"]], (f, x) => f.local("v128").set(m.madd(x, x, x)));
    relaxedSimd = WebAssembly.validate(m.bytes());
  }
  return relaxedSimd;
}

/** In pages, only cross-origin isolated ones share memory with their workers; Node always does. */
function canShareMemory(): boolean {
  return typeof SharedArrayBuffer !== "undefined" && globalThis.crossOriginIsolated !== false;
}

function defaultThreads(): number {
  const cores = nodeModule("node:os")?.availableParallelism() ?? globalThis.navigator?.hardwareConcurrency ?? 1;
  const wanted = typeof process !== "undefined" ? process.env?.POWER_ATTENTION_THREADS : undefined;
  if (wanted !== undefined && wanted !== "") {
    const threads = Number(wanted);
    if (!Number.isInteger(threads) || threads < 1) {
      throw new RangeError(`getDevice: POWER_ATTENTION_THREADS must be a positive integer, got ${wanted}`);
    }
    return threads;
  }
  return Math.min(cores, 16);
}

/** The CPU: one WebAssembly memory, kernels emitted at run time, worker threads where memory can be shared. */
export class WasmDevice extends Device {
  readonly kind = "wasm";
  override readonly memoryLimit: number;
  readonly #modules = new Map<string, WasmModule>();
  readonly #heap: Heap;
  #moduleBytes = 0;
  #disposed = false;

  private constructor(
    readonly wasmMemory: WebAssembly.Memory,
    private readonly maxBytes: number,
    readonly shared: boolean,
    private readonly pool: ThreadPool | undefined,
    override readonly check: boolean,
  ) {
    super();
    this.memoryLimit = maxBytes;
    this.#heap = new Heap(ARGS_ADDRESS + ARGS_BYTES, wasmMemory.buffer.byteLength, (bytes) => this.#grow(bytes));
  }

  static async create(options: WasmOptions = {}): Promise<WasmDevice> {
    const threads = options.threads ?? defaultThreads();
    if (!Number.isInteger(threads) || threads < 1) {
      throw new RangeError(`getDevice: threads must be a positive integer, got ${threads}`);
    }
    const maxBytes = options.maxMemory ?? 4 * GIB;
    if (!(maxBytes >= 16 * PAGE && maxBytes <= 4 * GIB)) {
      throw new RangeError(
        `getDevice: maxMemory must be from ${16 * PAGE} (1 MiB) to ${4 * GIB} bytes (4 GiB), got ${maxBytes}`,
      );
    }
    const shared = canShareMemory();
    const { memory, pages } = reserve(Math.floor(maxBytes / PAGE), shared);
    const pool = shared && threads > 1 ? await ThreadPool.start(memory, threads - 1) : undefined;
    return new WasmDevice(memory, pages * PAGE, shared, pool, options.check ?? false);
  }

  /** Threads that work on an operation, the caller's included. */
  get threads(): number {
    return 1 + (this.pool?.workers ?? 0);
  }

  get relaxed(): boolean {
    return hasRelaxedSimd();
  }

  get description(): string {
    const simd = this.relaxed ? "relaxed SIMD" : "SIMD";
    return `wasm (${this.threads} thread${this.threads === 1 ? "" : "s"}, 128-bit ${simd})`;
  }

  #grow(bytes: number): number {
    const pages = Math.ceil(bytes / PAGE);
    const have = this.wasmMemory.buffer.byteLength / PAGE;
    const room = this.maxBytes / PAGE - have;
    if (pages > room) return 0;
    // Growing by steps of an eighth keeps the number of system calls small.
    const step = Math.min(room, Math.max(pages, Math.ceil(have / 8)));
    try {
      this.wasmMemory.grow(step);
    } catch {
      return 0;
    }
    return step * PAGE;
  }

  /** Raw bytes for a kernel's own use, to be given back with `release`. */
  reserve(bytes: number, purpose: string): number {
    if (this.#disposed) throw new Error("wasm: the device was disposed");
    const address = this.#heap.allocate(bytes);
    if (address === undefined) {
      const mib = (n: number) => `${(n / 2 ** 20).toFixed(1)} MiB`;
      throw new RangeError(
        `wasm: ${purpose} needs ${mib(bytes)}; ${mib(this.#heap.used)} of at most ${mib(this.maxBytes)} are in use. ` +
          "Free tensors with scope() or dispose(), make the batch or sequence smaller, or raise maxMemory (4 GiB at most)",
      );
    }
    return address;
  }

  release(address: number): void {
    if (!this.#disposed) this.#heap.free(address);
  }

  allocate(dtype: DType, length: number): Storage {
    const address = this.reserve(length * DTYPE_BYTES[dtype], `a tensor of ${length} ${dtype} values`);
    return new WasmStorage(this, dtype, length, address);
  }

  write(storage: Storage, values: ArrayLike<number>): void {
    const { address, dtype } = storage as WasmStorage;
    const buffer = this.wasmMemory.buffer;
    if (dtype === "f32") new Float32Array(buffer, address, values.length).set(values);
    else if (dtype === "i32") new Int32Array(buffer, address, values.length).set(values);
    else {
      const bits = new Uint16Array(buffer, address, values.length);
      const convert = dtype === "bf16" ? toBF16Bits : toF16Bits;
      for (let k = 0; k < bits.length; k++) bits[k] = convert(values[k]);
    }
  }

  async read(storage: Storage, offset: number, length: number): Promise<TypedArray> {
    return this.readNow(storage, offset, length);
  }

  override readNow(storage: Storage, offset: number, length: number): TypedArray {
    const { address, dtype } = storage as WasmStorage;
    const buffer = this.wasmMemory.buffer;
    const start = address + offset * DTYPE_BYTES[dtype];
    if (dtype === "f32") return new Float32Array(new Float32Array(buffer, start, length));
    if (dtype === "i32") return new Int32Array(new Int32Array(buffer, start, length));
    const convert = dtype === "bf16" ? fromBF16Bits : fromF16Bits;
    return Float32Array.from(new Uint16Array(buffer, start, length), convert);
  }

  async sync(): Promise<void> {}

  assertNumbers(operation: string, storage: Storage): void {
    if (storage.dtype === "i32") return;
    const at = (this.readNow(storage, 0, storage.length) as Float32Array).findIndex(Number.isNaN);
    if (at >= 0) throw new Error(`${operation}: produced a NaN (element ${at} of ${storage.length})`);
  }

  memory(): DeviceMemory {
    // Code is no tensor's memory; compiled lazily, it would look like a leak.
    const used = this.#heap.used - this.#moduleBytes;
    const peak = Math.max(used, this.#heap.peak - this.#moduleBytes);
    return { used, peak, reserved: this.wasmMemory.buffer.byteLength };
  }

  resetPeak(): void {
    this.#heap.peak = this.#heap.used;
  }

  dispose(): void {
    this.#disposed = true;
    this.pool?.dispose();
  }

  /** The module of this name, emitted and compiled the first time it is asked for. */
  module(key: string, write: (m: ModuleBuilder) => void): WasmModule {
    const known = this.#modules.get(key);
    if (known) return known;
    const builder = new ModuleBuilder({ shared: this.shared, relaxed: this.relaxed });
    write(builder);
    const bytes = builder.bytes();
    const instance = new WebAssembly.Instance(new WebAssembly.Module(bytes), { env: { memory: this.wasmMemory } });
    // Kept for workers, each of which compiles it when it first needs it.
    const address = this.reserve(bytes.length, `the module ${key}`);
    this.#moduleBytes += Math.ceil(bytes.length / 64) * 64;
    new Uint8Array(this.wasmMemory.buffer, address, bytes.length).set(bytes);
    const functions = instance.exports as unknown as WasmModule["functions"];
    const made: WasmModule = {
      id: this.#modules.size,
      address,
      length: bytes.length,
      exports: Object.keys(functions),
      functions,
    };
    this.#modules.set(key, made);
    return made;
  }

  /**
   * Calls `module.name(args, item, scratch)` for each item, on all threads. `scratch` is the thread's own block of
   * `scratchBytes`, uninitialised.
   */
  run<A extends Record<string, "i32" | "f32" | "f64">>(
    module: WasmModule,
    name: string,
    layout: Arguments<A>,
    values: ArgumentValues<A>,
    items: number,
    scratchBytes = 0,
  ): void {
    if (items <= 0) return;
    if (layout.bytes > ARGS_BYTES)
      throw new RangeError(`wasm: ${name} takes ${layout.bytes} bytes of arguments, at most ${ARGS_BYTES}`);
    const kernel = module.functions[name];
    const pool = items > 1 ? this.pool : undefined;
    const stride = Math.ceil(scratchBytes / 64) * 64;
    const threads = pool ? this.threads : 1;
    const scratch = stride > 0 ? this.reserve(stride * threads, `${name}'s working memory`) : 0;
    layout.write(this.wasmMemory.buffer, ARGS_ADDRESS, values);
    try {
      if (!pool) for (let item = 0; item < items; item++) kernel(ARGS_ADDRESS, item, scratch);
      else {
        const { id, address, length } = module;
        const at = module.exports.indexOf(name);
        pool.run(
          { module: id, bytes: address, length, export: at, args: ARGS_ADDRESS, items, scratch, stride },
          (item) => kernel(ARGS_ADDRESS, item, scratch),
        );
      }
    } finally {
      if (scratch) this.release(scratch);
    }
  }
}

/** Where a tensor's first element is, in bytes. Only for tensors of a wasm device. */
export function addressOf(tensor: Pick<Tensor, "storage" | "offset" | "dtype">): number {
  return (tensor.storage as WasmStorage).address + tensor.offset * DTYPE_BYTES[tensor.dtype];
}

export function wasmDevice(tensor: Pick<Tensor, "device">): WasmDevice {
  return tensor.device as WasmDevice;
}

/** The largest memory that the engine grants, up to `pages`. */
function reserve(pages: number, shared: boolean): { memory: WebAssembly.Memory; pages: number } {
  for (let maximum = pages; ; maximum = Math.floor(maximum / 2)) {
    try {
      return { memory: new WebAssembly.Memory({ initial: 16, maximum, shared }), pages: maximum };
    } catch (error) {
      if (maximum < 1024) throw error;
    }
  }
}
