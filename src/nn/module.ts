import { sameShape } from "../tensor/shape.js";
import { isTensor, type Tensor } from "../tensor/tensor.js";

/**
 * A part of a model: a class whose properties are parameters (tensors with requiresGrad), further modules, and lists of
 * modules. Names follow from properties: `blocks.0.attention.project.weight`.
 *
 *     class Scale extends Module {
 *       readonly factor: Tensor;
 *       constructor(size: number, options: ModuleOptions) {
 *         super();
 *         this.factor = parameter(ones([size], options));
 *       }
 *       forward = (x: Tensor) => x.mul(this.factor);
 *     }
 */
export abstract class Module {
  #training = true;

  /** True between `train()` and `eval()`; a new module trains. */
  get training(): boolean {
    return this.#training;
  }

  /** Parameters by name, in the order of properties. A tensor that several modules share has its first name only. */
  parameters(): Map<string, Tensor> {
    const found = new Map<string, Tensor>();
    const seen = new Set<object>();
    const visit = (value: unknown, name: string) => {
      if (value === null || typeof value !== "object" || seen.has(value)) return;
      if (isTensor(value)) {
        if (!value.requiresGrad || value.node) return;
        seen.add(value);
        found.set(name, value);
      } else if (value instanceof Module || Array.isArray(value)) {
        seen.add(value);
        for (const [key, child] of Object.entries(value)) visit(child, name === "" ? key : `${name}.${key}`);
      }
    };
    visit(this, "");
    return found;
  }

  /** This module and all inside it. */
  *modules(): Generator<Module> {
    yield this;
    for (const child of Object.values(this).flat()) if (child instanceof Module) yield* child.modules();
  }

  /** Sets `training` here and inside. */
  train(on = true): this {
    for (const module of this.modules()) module.#training = on;
    return this;
  }

  eval(): this {
    return this.train(false);
  }

  /** Number of parameters' elements. */
  get parameterCount(): number {
    return [...this.parameters().values()].reduce((n, tensor) => n + tensor.size, 0);
  }

  /** Gives the gradients' memory back; `grad` is null afterwards. */
  clearGrad(): void {
    for (const tensor of this.parameters().values()) {
      tensor.grad?.dispose();
      tensor.grad = null;
    }
  }

  /** The parameters' values by name. */
  async stateDict(): Promise<Map<string, { shape: readonly number[]; values: ArrayLike<number> }>> {
    const dict = new Map<string, { shape: readonly number[]; values: ArrayLike<number> }>();
    for (const [name, tensor] of this.parameters())
      dict.set(name, { shape: tensor.shape, values: await tensor.data() });
    return dict;
  }

  /**
   * Writes values into the parameters.
   * @throws RangeError, before any is written, where names or shapes are not those of `parameters()`
   */
  loadStateDict(dict: ReadonlyMap<string, { shape: readonly number[]; values: ArrayLike<number> }>): void {
    const parameters = this.parameters();
    const list = (names: string[]) => names.slice(0, 3).join(", ") + (names.length > 3 ? ", …" : "");
    const missing = [...parameters.keys()].filter((name) => !dict.has(name));
    const surplus = [...dict.keys()].filter((name) => !parameters.has(name));
    if (missing.length > 0 || surplus.length > 0) {
      throw new RangeError(
        `loadStateDict: names must be those of the model, missing: ${list(missing) || "none"}; not in the model: ${list(surplus) || "none"}; load weights of the same configuration`,
      );
    }
    for (const [name, tensor] of parameters) {
      const { shape } = dict.get(name)!;
      if (!sameShape(shape, tensor.shape)) {
        throw new RangeError(
          `loadStateDict: ${name} must have shape [${tensor.shape.join(", ")}], got [${shape.join(", ")}]; load weights of the same configuration`,
        );
      }
    }
    for (const [name, tensor] of parameters) tensor.device.write(tensor.storage, dict.get(name)!.values);
  }

  /** Gives the parameters' memory back. */
  dispose(): void {
    this.clearGrad();
    for (const tensor of this.parameters().values()) tensor.dispose();
  }
}

/** Takes a tensor made with requiresGrad out of all scopes, to live as long as its module. */
export function parameter(tensor: Tensor): Tensor {
  if (!tensor.requiresGrad) throw new TypeError("parameter: the tensor must be made with requiresGrad: true");
  return tensor.keep();
}
