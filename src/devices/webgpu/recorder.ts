import type { Profile } from "./profile.js";

/** Bytes for the parameters of a dispatch: minUniformBufferOffsetAlignment's default, which every device takes. */
export const SLOT = 256;
const SLOTS = 256;
const USAGE_UNIFORM = 0x40 | 0x08; // UNIFORM | COPY_DST

/**
 * Dispatches are submitted so many at a time: few at first, so that the GPU works while the rest is still being recorded and
 * has little left to do when someone waits for the result, as for each token; many where a step goes on for long.
 */
const FEW = 16;
const MANY = 64;
/** Submits of few. */
const EARLY = 8;
/** `writeBuffer` holds its copy until something is submitted. */
const WRITES_PER_SUBMIT = 64 * 2 ** 20;

/**
 * Collects dispatches in one compute pass and submits them together: a submit costs more than a dispatch. Parameters
 * of the dispatches travel in one uniform buffer, written just before the submit that uses it.
 */
export class Recorder {
  readonly #queue: GPUQueue;
  readonly #uniforms: GPUBuffer;
  readonly #staging = new ArrayBuffer(SLOT * SLOTS);
  readonly parametersLayout: GPUBindGroupLayout;
  readonly #parameters: GPUBindGroup;
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  #dispatches = 0;
  /** Submits in a row that nobody asked for. */
  #early = 0;
  #written = 0;
  /** Submits so far. */
  submits = 0;
  /** While it is there, each dispatch is a pass of its own that writes down when it began and ended. */
  profile: Profile | undefined;

  constructor(private readonly gpu: GPUDevice) {
    this.#queue = gpu.queue;
    this.#uniforms = gpu.createBuffer({ label: "parameters", size: SLOT * SLOTS, usage: USAGE_UNIFORM });
    this.parametersLayout = gpu.createBindGroupLayout({
      label: "parameters",
      entries: [{ binding: 0, visibility: 4, buffer: { type: "uniform", hasDynamicOffset: true } }],
    });
    this.#parameters = gpu.createBindGroup({
      label: "parameters",
      layout: this.parametersLayout,
      entries: [{ binding: 0, resource: { buffer: this.#uniforms, size: SLOT } }],
    });
  }

  dispatch(
    pipeline: GPUComputePipeline,
    tensors: GPUBindGroup,
    writeParameters: (view: DataView) => void,
    workgroups: readonly number[],
  ): void {
    if (this.#dispatches >= (this.#early < EARLY ? FEW : MANY)) {
      const early = this.#early + 1;
      this.submit();
      this.#early = early;
    }
    this.#encoder ??= this.gpu.createCommandEncoder();
    const timestampWrites = this.profile?.mark(pipeline.label);
    if (timestampWrites) this.#endPass();
    this.#pass ??= this.#encoder.beginComputePass(timestampWrites && { timestampWrites });
    const offset = SLOT * this.#dispatches++;
    writeParameters(new DataView(this.#staging, offset, SLOT));
    this.#pass.setPipeline(pipeline);
    this.#pass.setBindGroup(0, tensors);
    this.#pass.setBindGroup(1, this.#parameters, [offset]);
    this.#pass.dispatchWorkgroups(workgroups[0], workgroups[1] ?? 1, workgroups[2] ?? 1);
  }

  copy(from: GPUBuffer, fromOffset: number, to: GPUBuffer, toOffset: number, bytes: number): void {
    this.#endPass();
    this.#encoder ??= this.gpu.createCommandEncoder();
    this.#encoder.copyBufferToBuffer(from, fromOffset, to, toOffset, bytes);
  }

  clear(buffer: GPUBuffer): void {
    this.#endPass();
    this.#encoder ??= this.gpu.createCommandEncoder();
    this.#encoder.clearBuffer(buffer);
  }

  /** Happens before everything recorded and not submitted. */
  write(buffer: GPUBuffer, offset: number, data: ArrayBuffer, byteOffset: number, bytes: number): void {
    this.#queue.writeBuffer(buffer, offset, data, byteOffset, bytes);
    this.#written += bytes;
    if (this.#written >= WRITES_PER_SUBMIT) this.submit();
  }

  submit(): void {
    this.#endPass();
    if (this.#dispatches > 0) this.#queue.writeBuffer(this.#uniforms, 0, this.#staging, 0, SLOT * this.#dispatches);
    this.#queue.submit(this.#encoder ? [this.#encoder.finish()] : []);
    this.submits++;
    this.#encoder = undefined;
    this.#dispatches = 0;
    this.#early = 0;
    this.#written = 0;
  }

  /** Nothing recorded waits for a submit. */
  get isEmpty(): boolean {
    return this.#encoder === undefined;
  }

  /** Nor does anything written. */
  get isClean(): boolean {
    return this.isEmpty && this.#written === 0;
  }

  #endPass(): void {
    this.#pass?.end();
    this.#pass = undefined;
  }

  dispose(): void {
    this.#uniforms.destroy();
  }
}
