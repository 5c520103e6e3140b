import { adamw } from "../ops/adamw/index.js";
import { cast } from "../ops/copy/index.js";
import { squareSum } from "../ops/square-sum/index.js";
import { zeros } from "../tensor/create.js";
import { noGrad } from "../tensor/tape.js";
import { scope, type Tensor } from "../tensor/tensor.js";

export interface AdamWOptions {
  beta1: number;
  beta2: number;
  epsilon: number;
  /** Of matrices; vectors (biases, norms) do not decay. */
  weightDecay: number;
  /** Gradients are scaled down to this global norm; 0 leaves them. */
  clip: number;
}

/** What an update keeps of a parameter. `master`: the f32 value of a half-precision one, which small updates add up in. */
interface Moments {
  mean: Tensor;
  square: Tensor;
  master?: Tensor;
}

/** AdamW over a model's parameters, with two running means for each, and an f32 copy of those in half precision. */
export class AdamW {
  readonly #moments = new Map<string, Moments>();
  #step = 0;

  constructor(
    private readonly parameters: ReadonlyMap<string, Tensor>,
    private readonly options: AdamWOptions,
  ) {
    for (const [name, parameter] of parameters) {
      const { shape, device, dtype } = parameter;
      const moment = () => zeros(shape, { device }).keep();
      const master = dtype === "f32" ? undefined : noGrad(() => cast(parameter, "f32")).keep();
      this.#moments.set(name, { mean: moment(), square: moment(), master });
    }
  }

  /** Updates done. */
  get step(): number {
    return this.#step;
  }

  /** The square of the gradients' global norm, as they are, on the device. */
  squaredNorm(): Tensor {
    return squareSum([...this.parameters.values()].flatMap((p) => p.grad ?? []));
  }

  /**
   * Moves the parameters that have a gradient; clears no gradient.
   * @param unscale what gradients are multiplied by first; default 1
   */
  update(learningRate: number, squaredNorm: Tensor, unscale = 1): void {
    const { clip, weightDecay, ...rest } = this.options;
    this.#step++;
    const plan = {
      ...rest,
      learningRate,
      step: this.#step,
      unscale,
      maxNorm: clip > 0 ? clip : Number.POSITIVE_INFINITY,
    };
    noGrad(() =>
      scope(() => {
        for (const [name, parameter] of this.parameters) {
          if (!parameter.grad) continue;
          const decay = parameter.shape.length >= 2 ? weightDecay : 0;
          const { master, mean, square } = this.#moments.get(name)!;
          const written = master ? { parameter: master, rounded: parameter } : { parameter };
          const tensors = { ...written, gradient: parameter.grad, mean, square, squaredNorm };
          adamw({ ...plan, weightDecay: decay }, tensors);
        }
      }),
    );
  }

  /** What is kept, by name: `mean.…`, `square.…` and, of half-precision parameters, `master.…`. */
  tensors(): Map<string, Tensor> {
    const found = new Map<string, Tensor>();
    for (const [name, moments] of this.#moments) {
      for (const [kind, tensor] of Object.entries(moments)) if (tensor) found.set(`${kind}.${name}`, tensor);
    }
    return found;
  }

  /** Goes on after `step` updates; the running means are written by the caller (see `tensors`). */
  resume(step: number): void {
    this.#step = step;
  }

  dispose(): void {
    for (const tensor of this.tensors().values()) tensor.dispose();
    this.#moments.clear();
  }
}
