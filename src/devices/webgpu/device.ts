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
import { describeAdapter, findAdapter, infoOf, requestDevice } from "./adapter.js";
import { Checks } from "./checks.js";
import { explainCompilation, type KernelSource, kernelKey, shaderOf } from "./kernel.js";
import type { TunedTiles } from "./legal-tiles.js";
import { type MatrixUnits, matrixUnits } from "./matrix-units.js";
import { BufferPool, type HeldBuffers, poolSize } from "./pool.js";
import { type GpuProfile, Profile } from "./profile.js";
import { Recorder, SLOT } from "./recorder.js";
import { adapterKey, tilesOf } from "./tile-file.js";

export interface WebGpuOptions {
  /** A device made elsewhere, used with whatever features and limits it has. Default: one of our own. */
  device?: GPUDevice;
  /** Which adapter, where there are several. Default "high-performance". */
  powerPreference?: GPUPowerPreference;
  /**
   * Keep indices inside buffers: Dawn adds a comparison to every access of a shader. Kernels are made so that theirs are,
   * and tests run with the checks on; without them a mistake reads or writes someone else's memory. What they cost
   * depends on the kernel and the GPU. Only where the library starts WebGPU itself, so neither in browsers nor with
   * `device`. Default true.
   */
  boundsChecks?: boolean;
  /** Leave matrix units alone, as on a GPU without them. Default false. */
  portable?: boolean;
  /**
   * A file of tile shapes as `power-attention tune` writes it, or false for none. Default, for a device of our own in Node:
   * the one that the command writes to (POWER_ATTENTION_TILES, else power-attention/tiles.json among the user's caches),
   * where it is there. Nothing is ever searched for on the way.
   */
  tiles?: false | string;
  /** Most bytes that tensors may take together. Default: what the GPU has. */
  maxMemory?: number;
  /**
   * Name the first operation that produced a NaN, or that got a gate above 1 or an id out of range, at the next read or
   * sync. Default false.
   */
  check?: boolean;
}

const MAP_READ = 0x01;
const COPY_DST = 0x08;

/** Larger ones are given back to the system when they have been read. */
const LARGEST_LANDING = 2 ** 20;

const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

export class WebGpuStorage extends Storage {
  constructor(
    readonly device: WebGpuDevice,
    readonly dtype: DType,
    readonly length: number,
    readonly buffer: GPUBuffer,
    /** Of our pool; a caller's buffer is not ours to reuse. */
    private readonly pooled: boolean,
    /** Where the values begin in a caller's buffer, in bytes. */
    readonly byteOffset = 0,
    /** The buffer's among the pool's. */
    readonly number?: number,
  ) {
    super();
  }

  protected override free(): void {
    if (this.pooled) this.device.giveBack(this.buffer);
  }
}

interface Kernel {
  pipeline: GPUComputePipeline;
  layout: GPUBindGroupLayout;
  /** Bind groups made so far, by what they bind: making one costs more than a dispatch, and buffers come back. */
  groups: Map<string, GPUBindGroup>;
}

/** Bind groups that a kernel keeps. */
const MOST_GROUPS = 1024;

/** A binding's part of a buffer, where the tensor's first element is in it, and the buffer's number if it is the pool's. */
interface Bound {
  resource: GPUBufferBinding & { offset: number; size: number };
  origin: number;
  number: number | undefined;
}

/** What a kernel is given: tensors by binding, parameters by name, and workgroups in up to three dimensions. */
export interface Dispatch {
  tensors: Record<string, Pick<Tensor, "storage" | "dtype" | "shape" | "strides" | "offset">>;
  parameters: Record<string, number>;
  workgroups: readonly number[];
  /** Parameters, u32, that are others when the work is repeated, see `Noted`. */
  moving?: readonly string[];
}

interface Call {
  pipeline: GPUComputePipeline;
  group: GPUBindGroup;
  /** Parameters as the shader gets them, and where those that move are. */
  parameters: DataView;
  moving: { name: string; at: number }[];
  workgroups: readonly number[];
}

/** What was dispatched, to be repeated on the same buffers. */
export interface Noted {
  readonly calls: Call[];
  /** Of tensors that were there before: work is repeated only while all are. */
  readonly storages: ReadonlySet<Storage>;
  /** Whether dispatches were all there was: copies, reads and writes are not repeated. */
  readonly whole: boolean;
  readonly held: HeldBuffers;
}

/** A GPU through WebGPU: kernels are WGSL made from plans, work is recorded and submitted in batches. */
export class WebGpuDevice extends Device {
  readonly kind = "webgpu";
  /** Pairs cost a GPU little beside states, which are made of bytes (H200: 256 and 1,024 are slower). */
  override readonly chunkSize = 512;
  /** 4,096 tokens with gradients took an H200 12.8 ms as pairs and 11.3 in chunks, of about the same arithmetic. */
  override readonly pairCost = 1.2;
  /** What WebGPU tells of its memory is the largest buffer: no tensor, and so no state, can be larger. */
  override readonly memoryLimit: number;
  readonly #poolLimit: number;
  /** Copied once: looking them up takes longer than a dispatch may. */
  readonly #limits: Pick<
    GPUSupportedLimits,
    "maxBufferSize" | "maxStorageBufferBindingSize" | "maxComputeWorkgroupsPerDimension"
  >;
  /** Storage buffers that a kernel can bind. */
  readonly storageBindings: number;
  /** Where values land that are read back, by size, while nobody reads. */
  readonly #landings = new Map<number, GPUBuffer[]>();
  readonly description: string;
  /** The shape that tensor-core kernels are made for; undefined where kernels are the portable ones. */
  readonly matrixUnits: MatrixUnits | undefined;
  /** Tile shapes by kernel that replace the table's, as the tune command finds them. */
  readonly tuned: TunedTiles;
  /** The adapter and its driver, as files of tiles name them. */
  readonly adapter: string;
  readonly #kernels = new Map<string, Kernel>();
  readonly #constants = new Map<string, Tensor>();
  readonly #pool: BufferPool;
  readonly #recorder: Recorder;
  /** Error scopes that have not answered yet. */
  readonly #pending = new Set<Promise<void>>();
  #failure: Error | undefined;
  /** An error that nobody asked for: often a consequence of the failure. */
  #uncaptured: Error | undefined;
  #lost: string | undefined;
  readonly #checks = new Checks(this);
  /** Of the recorder's submits, those that are known to have ended. */
  #ended = 0;
  #notes: { calls: Call[]; storages: Set<Storage>; whole: boolean } | undefined;

  private constructor(
    readonly gpu: GPUDevice,
    info: GPUAdapterInfo | undefined,
    private readonly own: boolean,
    options: WebGpuOptions,
  ) {
    super();
    this.#poolLimit = options.maxMemory ?? Number.POSITIVE_INFINITY;
    const { maxBufferSize, maxStorageBufferBindingSize, maxComputeWorkgroupsPerDimension } = gpu.limits;
    this.#limits = { maxBufferSize, maxStorageBufferBindingSize, maxComputeWorkgroupsPerDimension };
    this.storageBindings = gpu.limits.maxStorageBuffersPerShaderStage;
    this.memoryLimit = Math.min(this.#poolLimit, maxBufferSize);
    this.check = options.check ?? false;
    this.matrixUnits = options.portable ? undefined : matrixUnits(gpu, info);
    const units = this.matrixUnits;
    this.adapter = adapterKey(info);
    this.tuned = units ? { ...tilesOf(options.tiles, own, this.adapter, units, gpu.limits) } : {};
    const extras = ["shader-f16", "subgroups"].filter((feature) => gpu.features.has(feature));
    if (units) extras.push(`matrix units ${units.M}×${units.N}×${units.K}`);
    this.description = `webgpu (${[describeAdapter(info), ...extras].join(", ")})`;
    this.#pool = new BufferPool((size, usage) => this.#createBuffer(size, usage));
    this.#recorder = new Recorder(gpu);
    gpu.lost.then(({ reason, message }) => {
      this.#lost = `${reason}${message ? `: ${message}` : ""}`;
    });
    if (own) {
      gpu.addEventListener("uncapturederror", (event) => {
        event.preventDefault();
        this.#uncaptured ??= new Error(`webgpu: ${(event as GPUUncapturedErrorEvent).error.message}`);
      });
    }
  }

  override readonly check: boolean;

  static async create(options: WebGpuOptions = {}): Promise<WebGpuDevice> {
    if (options.device) {
      const { device } = options;
      if (options.boundsChecks === false) {
        throw new Error(
          "getDevice: boundsChecks: false needs a device that the library makes itself, got options.device; " +
            "leave one of them out, or make that device with Dawn's toggle disable_robustness",
        );
      }
      return new WebGpuDevice(device, await infoOf(device), false, options);
    }
    const adapter = await findAdapter(options);
    if (!adapter) {
      throw new Error(
        'getDevice: "webgpu" needs an adapter, and none was found; in Node install the package webgpu and a Vulkan, ' +
          'Metal or Direct3D driver, in a browser use one with WebGPU, or use getDevice("wasm")',
      );
    }
    const gpu = await requestDevice(adapter);
    try {
      return new WebGpuDevice(gpu, adapter.info, true, options);
    } catch (error) {
      gpu.destroy();
      throw error;
    }
  }

  /** Why the device is gone, or undefined while it works. */
  get lost(): string | undefined {
    return this.#lost;
  }

  /** Asks the device for the errors of what `make` does, without waiting. */
  #watch<T>(filter: GPUErrorFilter, make: () => T, explain: (error: GPUError) => Promise<Error> | Error): T {
    this.gpu.pushErrorScope(filter);
    try {
      return make();
    } finally {
      const answer: Promise<void> = this.gpu
        .popErrorScope()
        .then(async (error) => {
          if (error) this.#failure ??= await explain(error);
        })
        .catch(() => {}) // the device is lost, which is reported as such
        .finally(() => this.#pending.delete(answer));
      this.#pending.add(answer);
    }
  }

  #throwIfLost(): void {
    if (this.#lost === undefined) return;
    throw new Error(
      `webgpu: the device was lost (${this.#lost}) and its tensors with it; getDevice("webgpu") makes a new one`,
    );
  }

  #throwFailure(): void {
    this.#throwIfLost();
    const failure = this.#failure ?? this.#uncaptured;
    this.#failure = undefined;
    this.#uncaptured = undefined;
    if (failure) throw failure;
  }

  #createBuffer(size: number, usage: number): GPUBuffer {
    const { maxBufferSize } = this.#limits;
    const { used, reserved } = this.#pool;
    if (size > maxBufferSize) {
      throw new RangeError(
        `webgpu: one buffer holds at most ${mib(maxBufferSize)} on this adapter, and ${mib(size)} are needed; ` +
          "make the batch or the sequence smaller",
      );
    }
    const buffer = this.#watch(
      "out-of-memory",
      () => this.gpu.createBuffer({ size, usage }),
      () => {
        // What is free goes back to the GPU, so that a smaller attempt finds room.
        this.#pool.refuse(buffer);
        this.#recorder.submit();
        this.#trim();
        return new RangeError(
          `webgpu: out of memory: ${mib(size)} more were needed beside ${mib(used)} in use and ` +
            `${mib(reserved - used)} kept for reuse, which are free now. Free tensors with scope() or dispose(), make ` +
            "the batch or the sequence smaller, or raise chunkSize (fewer states)",
        );
      },
    );
    return buffer;
  }

  allocate(dtype: DType, length: number): Storage {
    this.#throwIfLost();
    const size = poolSize(length * DTYPE_BYTES[dtype]);
    if (this.#pool.reserved + this.#pool.wants(size) > this.#poolLimit) {
      this.#recorder.submit();
      this.#trim();
      if (this.#pool.reserved + size > this.#poolLimit) {
        throw new RangeError(
          `webgpu: a tensor of ${length} ${dtype} values needs ${mib(size)}; ${mib(this.#pool.used)} of at most ` +
            `${mib(this.#poolLimit)} are in use. Free tensors with scope() or dispose(), make the batch or sequence ` +
            "smaller, or raise maxMemory",
        );
      }
    }
    const buffer = this.#pool.take(size);
    return new WebGpuStorage(this, dtype, length, buffer, true, 0, this.#pool.numberOf(buffer));
  }

  giveBack(buffer: GPUBuffer): void {
    if (this.#lost === undefined) this.#pool.give(buffer);
  }

  write(storage: Storage, values: ArrayLike<number>): void {
    this.#throwIfLost();
    const target = storage as WebGpuStorage;
    const { dtype } = target;
    const bytes = Math.ceil((values.length * DTYPE_BYTES[dtype]) / 4) * 4;
    if (bytes === 0) return;
    const data = new ArrayBuffer(bytes);
    if (dtype === "f32") new Float32Array(data).set(values);
    else if (dtype === "i32") new Int32Array(data).set(values);
    else {
      const bits = new Uint16Array(data);
      const convert = dtype === "bf16" ? toBF16Bits : toF16Bits;
      for (let k = 0; k < values.length; k++) bits[k] = convert(values[k]);
    }
    this.#notWhole();
    this.#beforeWrite();
    this.#recorder.write(target.buffer, target.byteOffset, data, 0, bytes);
  }

  /** A write overtakes what is recorded, and a pooled buffer may be in use there under another name. */
  #beforeWrite(): void {
    if (!this.#recorder.isEmpty) this.#recorder.submit();
  }

  async read(storage: Storage, offset: number, length: number): Promise<TypedArray> {
    const { buffer, dtype, byteOffset } = storage as WebGpuStorage;
    const start = byteOffset + offset * DTYPE_BYTES[dtype];
    const from = Math.floor(start / 4) * 4;
    const end = Math.ceil((start + length * DTYPE_BYTES[dtype]) / 4) * 4;
    const data = await this.#download(buffer, from, Math.max(end - from, 4));
    if (dtype === "f32") return new Float32Array(data, start - from, length);
    if (dtype === "i32") return new Int32Array(data, start - from, length);
    const convert = dtype === "bf16" ? fromBF16Bits : fromF16Bits;
    return Float32Array.from(new Uint16Array(data, start - from, length), convert);
  }

  async #download(buffer: GPUBuffer, offset: number, bytes: number): Promise<ArrayBuffer> {
    this.#throwIfLost();
    this.#notWhole();
    const size = poolSize(bytes);
    const landing = this.#landings.get(size)?.pop() ?? this.#createBuffer(size, MAP_READ | COPY_DST);
    let again = false;
    this.#recorder.copy(buffer, offset, landing, 0, bytes);
    this.#recorder.submit();
    const { submits } = this.#recorder;
    try {
      await Promise.all([...this.#pending, landing.mapAsync(1)]);
      this.#ended = Math.max(this.#ended, submits);
      this.#throwFailure();
      const data = landing.getMappedRange().slice(0, bytes);
      landing.unmap();
      again = size <= LARGEST_LANDING;
      await this.#checks.throwFound();
      return data;
    } catch (error) {
      await this.gpu.queue.onSubmittedWorkDone().catch(() => {}); // lets `lost` arrive before the blame is laid
      await Promise.all(this.#pending);
      this.#throwFailure();
      throw error;
    } finally {
      if (!again) landing.destroy();
      else if (this.#landings.has(size)) this.#landings.get(size)!.push(landing);
      else this.#landings.set(size, [landing]);
    }
  }

  async sync(): Promise<void> {
    this.#throwIfLost();
    if (!this.#recorder.isClean) this.#recorder.submit();
    const { submits } = this.#recorder;
    // Waiting for nothing, as after a read, takes as long as for something.
    if (submits > this.#ended) {
      await this.gpu.queue.onSubmittedWorkDone().catch(() => {});
      this.#ended = Math.max(this.#ended, submits);
    }
    await Promise.all(this.#pending);
    this.#throwFailure();
    await this.#checks.throwFound();
  }

  /** Copies whole contiguous tensors of one size in bytes, in the order of the dispatches around it. */
  copy(from: Tensor, to: Tensor): void {
    const [source, target] = [from.storage as WebGpuStorage, to.storage as WebGpuStorage];
    const place = (x: Tensor, { byteOffset }: WebGpuStorage) => byteOffset + x.offset * DTYPE_BYTES[x.dtype];
    const bytes = Math.ceil(from.byteLength / 4) * 4;
    if (bytes === 0) return;
    this.#notWhole();
    this.#recorder.copy(source.buffer, place(from, source), target.buffer, place(to, target), bytes);
  }

  /** Sets a tensor that owns its buffer to zeros. */
  clear(tensor: Tensor): void {
    this.#notWhole();
    this.#recorder.clear((tensor.storage as WebGpuStorage).buffer);
  }

  /** Submits what is recorded, without waiting. */
  flush(): void {
    this.#throwIfLost();
    this.#recorder.submit();
  }

  /**
   * GPU time of all that `run` dispatches, by timestamp queries; what was recorded before runs first.
   * @throws Error where the adapter has no timestamp queries
   */
  async profile(run: () => unknown): Promise<GpuProfile> {
    if (!this.gpu.features.has("timestamp-query")) {
      throw new Error(
        `profile: ${this.description} has no timestamp queries; measure wall time between two sync() instead`,
      );
    }
    await this.sync();
    const profile = new Profile(this.gpu);
    this.#recorder.profile = profile;
    try {
      await run();
      await this.sync();
    } finally {
      this.#recorder.profile = undefined;
    }
    return profile.result();
  }

  memory(): DeviceMemory {
    return { used: this.#pool.used, peak: this.#pool.peak, reserved: this.#pool.reserved };
  }

  resetPeak(): void {
    this.#pool.peak = this.#pool.used;
  }

  dispose(): void {
    if (this.#lost !== undefined) return;
    this.#recorder.submit();
    this.#trim();
    for (const landings of this.#landings.values()) for (const landing of landings) landing.destroy();
    this.#recorder.dispose();
    if (this.own) this.gpu.destroy();
  }

  /** A tensor that kernels read and plans determine (a table of monomials), made once and kept. */
  constant(key: string, make: () => Tensor): Tensor {
    const known = this.#constants.get(key);
    if (known) return known;
    const made = make().keep();
    this.#constants.set(key, made);
    return made;
  }

  #kernel(source: KernelSource): Kernel {
    const key = kernelKey(source);
    const known = this.#kernels.get(key);
    if (known) return known;
    const code = shaderOf(source, this.gpu.features.has("shader-f16"));
    let module: GPUShaderModule | undefined;
    const kernel = this.#watch(
      "validation",
      () => {
        module = this.gpu.createShaderModule({ label: source.name, code });
        const layout = this.gpu.createBindGroupLayout({
          label: source.name,
          entries: Object.values(source.tensors).map(({ access }, binding) => ({
            binding,
            visibility: 4,
            buffer: { type: access === "read" ? "read-only-storage" : "storage" },
          })),
        });
        const pipeline = this.gpu.createComputePipeline({
          label: source.name,
          layout: this.gpu.createPipelineLayout({ bindGroupLayouts: [layout, this.#recorder.parametersLayout] }),
          compute: { module, entryPoint: "main" },
        });
        return { pipeline, layout, groups: new Map<string, GPUBindGroup>() };
      },
      async (error) => {
        this.#kernels.delete(key);
        const { messages } = await module!.getCompilationInfo();
        const hasErrors = messages.some(({ type }) => type === "error");
        return new Error(hasErrors ? explainCompilation(source.name, code, messages) : `webgpu: ${error.message}`);
      },
    );
    this.#kernels.set(key, kernel);
    return kernel;
  }

  /** Records one dispatch. It runs at the latest at the next read or sync. */
  dispatch(source: KernelSource, { tensors, parameters, workgroups, moving = [] }: Dispatch): void {
    this.#throwIfLost();
    if (workgroups.some((count) => count === 0)) return;
    const most = this.#limits.maxComputeWorkgroupsPerDimension;
    if (workgroups.some((count) => count > most)) {
      throw new RangeError(
        `webgpu: ${source.name} takes at most ${most} workgroups a dimension on this device, got ${workgroups.join(" × ")}; ` +
          "raise chunkSize, or make the sequence, the batch or the state smaller",
      );
    }
    const kernel = this.#kernel(source);
    const bound = Object.keys(source.tensors).map((name) => this.#bind(source.name, name, tensors[name]));
    const group = this.#group(source.name, kernel, bound);
    const write = (view: DataView) => {
      let at = 0;
      for (const name in source.parameters) {
        const type = source.parameters[name];
        if (type === "f32") view.setFloat32(at, parameters[name], true);
        else if (type === "i32") view.setInt32(at, parameters[name], true);
        else view.setUint32(at, parameters[name], true);
        at += 4;
      }
      for (const { origin } of bound) {
        view.setUint32(at, origin, true);
        at += 4;
      }
    };
    if (this.#notes) {
      const names = Object.keys(source.parameters);
      const places = moving.map((name) => ({ name, at: 4 * names.indexOf(name) }));
      const written = new DataView(new ArrayBuffer(SLOT));
      write(written);
      this.#notes.calls.push({ pipeline: kernel.pipeline, group, parameters: written, moving: places, workgroups });
      for (const name in tensors) this.#notes.storages.add(tensors[name].storage);
    }
    this.#recorder.dispatch(kernel.pipeline, group, write, workgroups);
  }

  /**
   * Notes what `run` dispatches, while it is dispatched. Buffers that are taken meanwhile are kept for `repeat`, until `forget`.
   */
  note<T>(run: () => T): { result: T; noted: Noted } {
    if (this.#notes) throw new Error("webgpu: work that is being noted can't note work of its own");
    const notes = { calls: [], storages: new Set<Storage>(), whole: true };
    this.#notes = notes;
    try {
      const { result, held } = this.#pool.hold(run);
      for (const storage of notes.storages) {
        if (held.all.has((storage as WebGpuStorage).buffer)) notes.storages.delete(storage);
      }
      return { result, noted: { ...notes, held } };
    } finally {
      this.#notes = undefined;
    }
  }

  /** Dispatches it all once more: with `moving` parameters, by name, as they are now, and all else as it was. */
  repeat({ calls }: Noted, moving: Record<string, number>): void {
    this.#throwIfLost();
    for (const { pipeline, group, parameters, moving: places, workgroups } of calls) {
      for (const { name, at } of places) parameters.setUint32(at, moving[name], true);
      const bytes = new Uint8Array(parameters.buffer);
      const write = ({ buffer, byteOffset }: DataView) => new Uint8Array(buffer, byteOffset, SLOT).set(bytes);
      this.#recorder.dispatch(pipeline, group, write, workgroups);
    }
  }

  forget({ held }: Noted): void {
    if (this.#lost === undefined) this.#pool.release(held);
  }

  #notWhole(): void {
    if (this.#notes) this.#notes.whole = false;
  }

  #group(label: string, kernel: Kernel, bound: readonly Bound[]): GPUBindGroup {
    let key = "";
    for (const { number, resource } of bound) key += `${number},${resource.offset},${resource.size};`;
    const known = kernel.groups.get(key);
    if (known) return known;
    const entries = bound.map(({ resource }, binding) => ({ binding, resource }));
    const group = this.gpu.createBindGroup({ label, layout: kernel.layout, entries });
    if (bound.some(({ number }) => number === undefined)) return group;
    if (kernel.groups.size >= MOST_GROUPS) kernel.groups.clear();
    kernel.groups.set(key, group);
    return group;
  }

  /** Destroys buffers that are free, and forgets what binds them. */
  #trim(): void {
    this.#pool.trim();
    for (const { groups } of this.#kernels.values()) groups.clear();
  }

  /** The part of a tensor's buffer that its elements span, from an aligned start. */
  #bind(kernel: string, name: string, tensor: Dispatch["tensors"][string]): Bound {
    const { buffer, byteOffset, dtype, number } = tensor.storage as WebGpuStorage;
    const width = DTYPE_BYTES[dtype];
    const start = byteOffset + tensor.offset * width;
    const { shape, strides } = tensor;
    let last = 0;
    for (let axis = 0; axis < shape.length; axis++) last += Math.max(shape[axis] - 1, 0) * strides[axis];
    const offset = Math.floor(start / 256) * 256;
    const size = Math.min(Math.ceil((start + (last + 1) * width - offset) / 16) * 16, buffer.size - offset);
    const limit = this.#limits.maxStorageBufferBindingSize;
    if (size > limit) {
      throw new RangeError(
        `webgpu: a kernel sees at most ${mib(limit)} of a tensor on this device, and ${name} of ${kernel} spans ` +
          `${mib(size)}; make the batch or the sequence smaller, use a half-precision dtype, or for a state a lower degree or smaller heads`,
      );
    }
    return {
      resource: { buffer, offset, size },
      origin: (start - offset) / width,
      number,
    };
  }

  /** Workgroups for `count` items in a row: `index_of_group(id, workgroups)` counts them in the shader. */
  spread(count: number): number[] {
    const most = this.#limits.maxComputeWorkgroupsPerDimension;
    if (count <= most) return [count];
    const rows = Math.ceil(count / most);
    return [Math.ceil(count / rows), rows];
  }

  assertNumbers(operation: string, storage: Storage): void {
    this.#checks.searchNaN(operation, storage);
  }

  /**
   * In check mode, lets the next read or sync throw what `explain` makes of the first element of a contiguous f32 or i32
   * tensor for which `rule` holds: WGSL, of `value` and `limit`. Else nothing happens.
   */
  refuseWhere(values: Tensor, rule: string, limit: number, explain: (at: number, value: number) => Error): void {
    if (this.check) this.#checks.search(values, rule, limit, explain);
  }
}

export function webgpuDevice(tensor: Tensor): WebGpuDevice {
  return tensor.device as WebGpuDevice;
}
