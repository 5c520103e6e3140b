import { Device, type Storage } from "../devices/device.js";
import * as ops from "../ops/index.js";
import { DTYPE_BYTES, type DType, type TypedArray } from "./dtype.js";
import { Scope, tensorsIn } from "./scope.js";
import { axisOf, checkShape, isContiguous, rowMajor, type Shape, sameShape, sizeOf } from "./shape.js";
import { backpropagate, type GradNode, record } from "./tape.js";

const abandoned = new FinalizationRegistry<Storage>((storage) => storage.release());

/**
 * A view of a device's memory: shape, strides (in elements), dtype. Views (`reshape`, `transpose`, `slice`, …) share
 * the memory of what they view. Values never change after an operation has made them.
 */
export class Tensor {
  /** Operations on this tensor are recorded, and `backward` reaches it. */
  readonly requiresGrad: boolean;
  /** What `backward` has accumulated, or null. */
  grad: Tensor | null = null;
  #node: GradNode | undefined;
  #nodeOutput = 0;
  #storage: Storage | undefined;

  /** Takes over one count of `storage`. Use `tensor`, `zeros`, … to make tensors. */
  constructor(
    storage: Storage,
    readonly shape: Shape,
    readonly strides: readonly number[],
    readonly offset: number,
    options: { requiresGrad?: boolean; scoped?: boolean } = {},
  ) {
    this.#storage = storage;
    this.requiresGrad = options.requiresGrad ?? false;
    this.device = storage.device;
    this.dtype = storage.dtype;
    abandoned.register(this, storage, this);
    if (options.scoped ?? true) Scope.adopt(this);
  }

  readonly device: Device;
  readonly dtype: DType;

  get storage(): Storage {
    if (!this.#storage) {
      throw new Error(
        `Tensor [${this.shape.join(", ")}]: used after it was disposed; return it from the scope, or take it out with keep()`,
      );
    }
    return this.#storage;
  }

  get isDisposed(): boolean {
    return this.#storage === undefined;
  }

  /** Number of elements. */
  get size(): number {
    return sizeOf(this.shape);
  }

  /** Bytes of the elements, were they contiguous. */
  get byteLength(): number {
    return this.size * DTYPE_BYTES[this.dtype];
  }

  get isContiguous(): boolean {
    return isContiguous(this.shape, this.strides);
  }

  get node(): GradNode | undefined {
    return this.#node;
  }

  get nodeOutput(): number {
    return this.#nodeOutput;
  }

  setNode(node: GradNode, output: number): void {
    this.#node = node;
    this.#nodeOutput = output;
    (this as { requiresGrad: boolean }).requiresGrad = true;
  }

  /** Gives the memory back; views of it stay valid until they are disposed too. Disposing twice is harmless. */
  dispose(): void {
    if (!this.#storage) return;
    abandoned.unregister(this);
    this.#storage.release();
    this.#storage = undefined;
    this.#node?.release();
  }

  /** Takes this tensor out of all open scopes. */
  keep(): this {
    Scope.keep(this);
    return this;
  }

  /** The same values outside of the graph and of all scopes; shares memory. */
  alias(): Tensor {
    return new Tensor(this.storage.retain(), this.shape, this.strides, this.offset, { scoped: false });
  }

  /** The same values outside of the graph; shares memory. */
  detach(): Tensor {
    return new Tensor(this.storage.retain(), this.shape, this.strides, this.offset);
  }

  /** The values in row-major order: Float32Array (halves widened), Int32Array for i32, Float64Array on the oracle. */
  async data(): Promise<TypedArray> {
    const flat = this.isContiguous ? this : ops.contiguous(this.detach());
    try {
      return await this.device.read(flat.storage, flat.offset, this.size);
    } finally {
      if (flat !== this) flat.dispose();
    }
  }

  /** The only value of a one-element tensor. */
  async item(): Promise<number> {
    if (this.size !== 1) {
      throw new RangeError(`item: a tensor of one element is needed, got shape [${this.shape.join(", ")}]; use data()`);
    }
    return (await this.data())[0];
  }

  /**
   * Adds d(this)/d(leaf)·upstream to the `grad` of every leaf that requires it, and frees the graph.
   * @param upstream gradient of this tensor; of ones where this has one element, else it must be given. Same shape.
   */
  backward(upstream?: Tensor): void {
    if (!this.requiresGrad) {
      throw new Error("backward: this tensor does not depend on any tensor made with requiresGrad: true");
    }
    if (!upstream && this.size !== 1) {
      throw new RangeError(
        `backward: a tensor of shape [${this.shape.join(", ")}] needs an upstream gradient of that shape; only a scalar has one by default`,
      );
    }
    if (upstream && !sameShape(upstream.shape, this.shape)) {
      throw new RangeError(
        `backward: the upstream gradient must have shape [${this.shape.join(", ")}], got [${upstream.shape.join(", ")}]`,
      );
    }
    if (upstream && upstream.device !== this.device) {
      throw new TypeError(
        `backward: the upstream gradient is on ${upstream.device.kind}, the tensor on ${this.device.kind}`,
      );
    }
    void this.storage; // throws where it was disposed, and the graph with it
    using _ = new Scope();
    const seed = upstream ?? ops.full(this.shape, 1, { device: this.device, dtype: this.dtype });
    // A half-precision leaf may get one gradient in its own format and another in f32.
    const sum = (a: Tensor, b: Tensor) => (a.dtype === b.dtype ? ops.add(a, b) : ops.add(a.to("f32"), b.to("f32")));
    backpropagate(this, seed, sum);
  }

  #view(
    shape: Shape,
    strides: readonly number[],
    offset: number,
    name: string,
    inverse: (g: Tensor) => Tensor,
  ): Tensor {
    const out = new Tensor(this.storage.retain(), shape, strides, offset);
    record(name, [this], [out], [], ([g]) => [g && inverse(g)]);
    return out;
  }

  /** Another shape over the same values in row-major order; one extent may be −1. A view where strides allow. */
  reshape(shape: Shape): Tensor {
    const known = shape.reduce((n, extent) => (extent === -1 ? n : n * extent), 1);
    const target = shape.map((extent) => (extent === -1 && known > 0 ? this.size / known : extent));
    if (
      shape.filter((extent) => extent === -1).length > 1 ||
      !target.every(Number.isInteger) ||
      sizeOf(target) !== this.size
    ) {
      throw new RangeError(
        `reshape: [${this.shape.join(", ")}] (${this.size} elements) does not fit [${shape.join(", ")}]`,
      );
    }
    checkShape("reshape", target);
    if (sameShape(target, this.shape)) return this.#view(this.shape, this.strides, this.offset, "reshape", (g) => g);
    const strides = viewStrides(this.shape, this.strides, target);
    if (!strides) {
      const copy = ops.contiguous(this);
      const out = copy.reshape(target);
      copy.dispose();
      return out;
    }
    return this.#view(target, strides, this.offset, "reshape", (g) => g.reshape(this.shape));
  }

  /** Axes in another order: `x.permute([0, 2, 1])`. A view. */
  permute(axes: readonly number[]): Tensor {
    const from = axes.map((axis) => axisOf("permute", axis, this.shape.length));
    if (new Set(from).size !== this.shape.length || from.length !== this.shape.length) {
      throw new RangeError(`permute: axes must name each of ${this.shape.length} axes once, got [${axes.join(", ")}]`);
    }
    const inverse = from.map((_, axis) => from.indexOf(axis));
    return this.#view(
      from.map((axis) => this.shape[axis]),
      from.map((axis) => this.strides[axis]),
      this.offset,
      "permute",
      (g) => g.permute(inverse),
    );
  }

  /** Two axes exchanged; the last two by default. A view. */
  transpose(a = -2, b = -1): Tensor {
    const axes = this.shape.map((_, axis) => axis);
    const x = axisOf("transpose", a, axes.length);
    const y = axisOf("transpose", b, axes.length);
    [axes[x], axes[y]] = [y, x];
    return this.permute(axes);
  }

  /** Elements start … end − 1 along one axis; both may count from the end. A view. */
  slice(axis: number, start: number, end = this.shape[axisOf("slice", axis, this.shape.length)]): Tensor {
    const at = axisOf("slice", axis, this.shape.length);
    const extent = this.shape[at];
    const from = start < 0 ? start + extent : start;
    const to = end < 0 ? end + extent : end;
    if (!Number.isInteger(from) || !Number.isInteger(to) || from < 0 || to > extent || from > to) {
      throw new RangeError(`slice: ${start} … ${end} is not a range of axis ${axis}, which has ${extent} elements`);
    }
    const shape = this.shape.map((n, k) => (k === at ? to - from : n));
    return this.#view(shape, this.strides, this.offset + from * this.strides[at], "slice", (g) =>
      ops.pad(g, at, from, extent - to),
    );
  }

  /** Pieces of the given sizes, or equal pieces of one size, along an axis. Views. */
  split(sizes: number | readonly number[], axis = -1): Tensor[] {
    const at = axisOf("split", axis, this.shape.length);
    const extent = this.shape[at];
    if (typeof sizes === "number" && (!Number.isInteger(sizes) || sizes < 1 || extent % sizes !== 0)) {
      throw new RangeError(`split: ${extent} elements do not divide into pieces of ${sizes}; give the sizes as a list`);
    }
    const list = typeof sizes === "number" ? new Array<number>(extent / sizes).fill(sizes) : sizes;
    if (list.some((n) => !Number.isInteger(n) || n < 0) || list.reduce((a, b) => a + b, 0) !== extent) {
      throw new RangeError(
        `split: sizes must be integers of 0 or more that add up to the axis's ${extent} elements, got [${list.join(", ")}]`,
      );
    }
    let start = 0;
    const ends = list.map((n) => (start += n));
    const views = list.map(
      (n, k) =>
        new Tensor(
          this.storage.retain(),
          this.shape.map((extentK, axisK) => (axisK === at ? n : extentK)),
          this.strides,
          this.offset + (ends[k] - n) * this.strides[at],
        ),
    );
    record("split", [this], views, [], (grads) => {
      const like = grads.find((g) => g !== undefined)!;
      const parts = grads.map((g, k) => g ?? ops.full(views[k].shape, 0, { device: this.device, dtype: like.dtype }));
      return [ops.concat(parts, at)];
    });
    return views;
  }

  /** Stretches axes of extent 1 (and adds leading axes) without copying. */
  expand(shape: Shape): Tensor {
    const lead = shape.length - this.shape.length;
    const fits = lead >= 0 && this.shape.every((n, k) => n === shape[k + lead] || n === 1);
    if (!fits) {
      throw new RangeError(`expand: [${this.shape.join(", ")}] does not stretch to [${shape.join(", ")}]`);
    }
    const strides = shape.map((n, k) =>
      k < lead || (this.shape[k - lead] === 1 && n !== 1) ? 0 : this.strides[k - lead],
    );
    return this.#view(shape, strides, this.offset, "expand", (g) => ops.sumTo(g, this.shape));
  }

  /** A contiguous tensor of the same values: this one if it is. */
  contiguous(): Tensor {
    return this.isContiguous ? this : ops.contiguous(this);
  }

  /**
   * The values in another dtype, rounded, differentiable: `x.to("bf16")`. A tensor of that dtype already is returned
   * as it is. Or on another device: `await x.to(device)`, a new leaf as `copyTo` makes it.
   * @throws TypeError where the target is neither a dtype nor a device
   */
  to(dtype: DType): Tensor;
  to(device: Device): Promise<Tensor>;
  to(target: DType | Device): Tensor | Promise<Tensor> {
    if (target instanceof Device) return this.copyTo(target);
    if (!(target in DTYPE_BYTES)) {
      throw new TypeError(
        `to: the target must be one of ${Object.keys(DTYPE_BYTES).join(", ")} or a device, got ${String(target)}; ` +
          'pass for example "f32"',
      );
    }
    return target === this.dtype ? this : ops.cast(this, target);
  }

  /**
   * A copy on another device, with the same dtype. Values pass through the host, so it is asynchronous and outside of
   * the graph; a leaf that requires a gradient is copied to one that does.
   */
  async copyTo(device: Device): Promise<Tensor> {
    if (!(device instanceof Device)) {
      throw new TypeError(`copyTo: device must be a Device, got ${String(device)}; pass await getDevice()`);
    }
    const values = await this.data();
    return fromValues(device, values, this.shape, this.dtype, this.requiresGrad && !this.#node);
  }

  add(other: Tensor | number): Tensor {
    return ops.add(this, other);
  }

  sub(other: Tensor | number): Tensor {
    return ops.sub(this, other);
  }

  mul(other: Tensor | number): Tensor {
    return ops.mul(this, other);
  }

  div(other: Tensor | number): Tensor {
    return ops.div(this, other);
  }

  neg(): Tensor {
    return ops.neg(this);
  }

  exp(): Tensor {
    return ops.exp(this);
  }

  /** Sum over one axis, or over everything. */
  sum(axis?: number, options?: { keepDims?: boolean }): Tensor {
    return ops.sum(this, axis, options);
  }

  mean(axis?: number, options?: { keepDims?: boolean }): Tensor {
    return ops.mean(this, axis, options);
  }

  matmul(other: Tensor): Tensor {
    return ops.matmul(this, other);
  }

  toString(): string {
    return `Tensor([${this.shape.join(", ")}], ${this.dtype}, ${this.device.kind})`;
  }
}

export function isTensor(value: unknown): value is Tensor {
  return value instanceof Tensor;
}

/** Strides that show the same memory as another shape, or undefined where a copy is needed. */
function viewStrides(shape: Shape, strides: readonly number[], target: Shape): number[] | undefined {
  if (sizeOf(shape) === 0) return rowMajor(target);
  // Runs of axes that are contiguous among themselves, innermost first.
  const runs: { size: number; step: number }[] = [];
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    if (shape[axis] === 1) continue;
    const last = runs.at(-1);
    if (last && strides[axis] === last.size * last.step) last.size *= shape[axis];
    else runs.push({ size: shape[axis], step: strides[axis] });
  }
  const out = new Array<number>(target.length).fill(0);
  let run = 0;
  for (let axis = target.length - 1; axis >= 0; axis--) {
    if (target[axis] === 1) continue;
    while (runs[run].size === 1) run++;
    if (runs[run].size % target[axis] !== 0) return undefined;
    out[axis] = runs[run].step;
    runs[run].size /= target[axis];
    runs[run].step *= target[axis];
  }
  return out;
}

/** Uninitialised memory as a tensor: for operations that write every element. */
export function empty(shape: Shape, device: Device, dtype: DType): Tensor {
  return new Tensor(device.allocate(dtype, sizeOf(shape)), shape, rowMajor(shape), 0);
}

export function fromValues(
  device: Device,
  values: ArrayLike<number>,
  shape: Shape,
  dtype: DType,
  requiresGrad = false,
): Tensor {
  const storage = device.allocate(dtype, sizeOf(shape));
  device.write(storage, values);
  return new Tensor(storage, shape, rowMajor(shape), 0, { requiresGrad });
}

/** Runs `fn` and disposes every tensor made inside, except those it returns (in arrays or plain objects). */
export function scope<T>(fn: () => T): T {
  const inner = new Scope();
  try {
    const result = fn();
    if (result instanceof Promise) {
      throw new TypeError("scope: the function must not be async; use `using s = new Scope()` around awaits");
    }
    for (const tensor of tensorsIn(result, isTensor)) inner.promote(tensor);
    return result;
  } finally {
    inner.end();
  }
}
