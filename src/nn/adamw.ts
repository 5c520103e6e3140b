import { adamw } from "../ops/adamw/index.js";
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

/** AdamW over a model's parameters, with its two running means for each. */
export class AdamW {
  readonly #moments = new Map<string, { mean: Tensor; square: Tensor }>();
  #step = 0;

  constructor(
    private readonly parameters: ReadonlyMap<string, Tensor>,
    private readonly options: AdamWOptions,
  ) {
    for (const [name, { shape, device }] of parameters) {
      const moment = () => zeros(shape, { device }).keep();
      this.#moments.set(name, { mean: moment(), square: moment() });
    }
  }

  /** Updates done. */
  get step(): number {
    return this.#step;
  }

  /** The square of the gradients' global norm, on the device. */
  squaredNorm(): Tensor {
    return squareSum([...this.parameters.values()].flatMap((p) => p.grad ?? []));
  }

  /** Moves the parameters that have a gradient; clears no gradient. */
  update(learningRate: number, squaredNorm: Tensor): void {
    const { clip, weightDecay, ...rest } = this.options;
    this.#step++;
    const plan = { ...rest, learningRate, step: this.#step, maxNorm: clip > 0 ? clip : Number.POSITIVE_INFINITY };
    noGrad(() =>
      scope(() => {
        for (const [name, parameter] of this.parameters) {
          if (!parameter.grad) continue;
          const decay = parameter.shape.length >= 2 ? weightDecay : 0;
          const tensors = { parameter, gradient: parameter.grad, ...this.#moments.get(name)!, squaredNorm };
          adamw({ ...plan, weightDecay: decay }, tensors);
        }
      }),
    );
  }

  /** The running means by name, `mean.…` and `square.…`. */
  tensors(): Map<string, Tensor> {
    return new Map(
      [...this.#moments].flatMap(([name, { mean, square }]) => [
        [`mean.${name}`, mean] as const,
        [`square.${name}`, square] as const,
      ]),
    );
  }

  /** Goes on after `step` updates; the running means are written by the caller (see `tensors`). */
  resume(step: number): void {
    this.#step = step;
  }

  dispose(): void {
    for (const { mean, square } of this.#moments.values()) {
      mean.dispose();
      square.dispose();
    }
    this.#moments.clear();
  }
}
