import type { DType, TypedArray } from "../tensor/dtype.js";

export type DeviceKind = "oracle" | "wasm" | "webgpu";

/** Bytes that a device holds for tensors and for its own work. */
export interface DeviceMemory {
  /** Held by live tensors and by work in progress. */
  used: number;
  /** The largest `used` since the device was made, or since `resetPeak()`. */
  peak: number;
  /** Taken from the system so far, pooled blocks included. */
  reserved: number;
}

/**
 * A block of device memory that one or several tensors view. It is counted: each view retains it, the last release
 * gives it back to the device.
 */
export abstract class Storage {
  #views = 1;
  abstract readonly device: Device;
  abstract readonly dtype: DType;
  /** Elements, not bytes. */
  abstract readonly length: number;
  protected abstract free(): void;

  retain(): this {
    this.#views++;
    return this;
  }

  /** Whether the last view is gone. */
  get isFree(): boolean {
    return this.#views === 0;
  }

  release(): void {
    this.#views--;
    if (this.#views === 0) this.free();
  }
}

/**
 * Where tensors live and operations run. A device moves values in and out and hands out memory; each operation brings
 * its own kernel for each kind of device (see ops/operation.ts), so adding a device never changes this interface.
 */
export abstract class Device {
  abstract readonly kind: DeviceKind;
  /** Stop at the first operation that produces a NaN, and name it (slow; for finding faults). */
  readonly check: boolean = false;
  /** Most bytes that tensors and working memory may take together. */
  readonly memoryLimit: number = 4 * 2 ** 30;
  /** Tokens in a chunk of power attention where the caller leaves the choice; undefined: 256. */
  readonly chunkSize: number | undefined = undefined;
  /** What a multiply-add between pairs of tokens costs beside one of a state; undefined: 1. */
  readonly pairCost: number | undefined = undefined;
  /** One line for people: kind, threads or adapter, features. */
  abstract readonly description: string;

  /** Uninitialised memory for `length` elements. */
  abstract allocate(dtype: DType, length: number): Storage;
  /** Copies `values` (rounded to the storage's dtype) to the storage's start. */
  abstract write(storage: Storage, values: ArrayLike<number>): void;
  /** Copies elements out, in storage order, after all work queued so far. */
  abstract read(storage: Storage, offset: number, length: number): Promise<TypedArray>;
  /** The same at once, where the device can: absent where reading is asynchronous. */
  readNow?(storage: Storage, offset: number, length: number): TypedArray;
  /** Resolves when all work queued so far is done. */
  abstract sync(): Promise<void>;
  /** Throws, naming the operation, where a float storage holds a NaN. Only called in check mode. */
  abstract assertNumbers(operation: string, storage: Storage): void;
  abstract memory(): DeviceMemory;
  abstract resetPeak(): void;
  /** Ends threads and frees everything; tensors of the device are unusable afterwards. */
  abstract dispose(): void;
}
