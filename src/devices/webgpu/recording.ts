import { sameShape } from "../../tensor/shape.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { type Noted, type WebGpuDevice, webgpuDevice } from "./device.js";

/** Gives the buffers of recordings back that nobody can run any more. */
const abandoned = new FinalizationRegistry<{ device: WebGpuDevice; noted: Noted }>(({ device, noted }) =>
  device.forget(noted),
);

/**
 * Work that is always the same but for what its inputs hold, such as a model's for each token it writes: recorded once, and
 * run again without the operations' own work on the host, several times that of the dispatches. Intermediate
 * tensors keep their memory as long as the recording lives.
 */
export class Recording {
  private constructor(
    private readonly device: WebGpuDevice,
    private readonly noted: Noted,
    private readonly inputs: readonly Tensor[],
    private readonly output: Tensor,
  ) {}

  /**
   * Runs `run` on copies of `inputs`, contiguous, and records it where it can be run again: where all that it does are
   * dispatches.
   */
  static of(
    inputs: readonly Tensor[],
    run: (...inputs: Tensor[]) => Tensor,
  ): { output: Tensor; recording: Recording | undefined } {
    const device = webgpuDevice(inputs[0]);
    // Outside of what is noted: copies are made anew each time.
    const own = inputs.map((input) => copyOf(input).keep());
    let done: ReturnType<typeof device.note<Tensor>>;
    try {
      done = device.note(() => run(...own).keep());
    } catch (error) {
      for (const tensor of own) tensor.dispose();
      throw error;
    }
    const { result: output, noted } = done;
    const recording = new Recording(device, noted, own, output);
    if (!noted.whole) {
      const result = output.detach();
      recording.dispose();
      return { output: result, recording: undefined };
    }
    abandoned.register(recording, { device, noted }, recording);
    return { output: copyOf(output), recording };
  }

  /** Whether it can be run on these: they are like those that it was made with, and nothing that it reads or writes is gone. */
  takes(inputs: readonly Tensor[]): boolean {
    const alike = (a: Tensor, b: Tensor) =>
      a.device === b.device && a.dtype === b.dtype && sameShape(a.shape, b.shape) && a.isContiguous;
    if (inputs.length !== this.inputs.length || !inputs.every((x, n) => alike(x, this.inputs[n]))) return false;
    for (const storage of this.noted.storages) if (storage.isFree) return false;
    return true;
  }

  /** Runs it on what `inputs` hold. `moving`: what such parameters of its dispatches are now. */
  again(inputs: readonly Tensor[], moving: Record<string, number>): Tensor {
    for (const [n, input] of inputs.entries()) this.device.copy(input, this.inputs[n]);
    this.device.repeat(this.noted, moving);
    return copyOf(this.output);
  }

  dispose(): void {
    abandoned.unregister(this);
    for (const tensor of [...this.inputs, this.output]) tensor.dispose();
    this.device.forget(this.noted);
  }
}

function copyOf(tensor: Tensor): Tensor {
  const copy = empty(tensor.shape, tensor.device, tensor.dtype);
  webgpuDevice(tensor).copy(tensor, copy);
  return copy;
}
