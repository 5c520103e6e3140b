import type { Tensor } from "./tensor.js";

// `using`, as it is compiled, looks the symbol up; engines from before explicit resource management lack it.
if (!Symbol.dispose) Object.defineProperty(Symbol, "dispose", { value: Symbol("Symbol.dispose") });

/**
 * Frees tensors in groups: those made while a scope is the innermost open one are disposed when it ends.
 *
 *     using step = new Scope();            // or: const step = new Scope(); try { … } finally { step.end(); }
 *     const loss = model.loss(batch);
 *     loss.backward();                     // gradients of parameters outlive the scope
 *
 * `scope(fn)` is the callback form.
 */
export class Scope {
  static #current: Scope | undefined;
  readonly #outer: Scope | undefined;
  readonly #tensors = new Set<Tensor>();
  #open = true;

  constructor() {
    this.#outer = Scope.#current;
    Scope.#current = this;
  }

  /** Called by every new tensor. */
  static adopt(tensor: Tensor): void {
    if (Scope.#current) Scope.#current.#tensors.add(tensor);
  }

  /** Takes a tensor out of every open scope: it lives until `dispose()` or garbage collection. */
  static keep(tensor: Tensor): void {
    for (let s = Scope.#current; s; s = s.#outer) s.#tensors.delete(tensor);
  }

  /** Hands a tensor to the scope around this one. */
  promote(tensor: Tensor): void {
    if (this.#tensors.delete(tensor) && this.#outer) this.#outer.#tensors.add(tensor);
  }

  end(): void {
    if (!this.#open) return;
    if (Scope.#current !== this) {
      throw new Error("Scope.end: scopes end in the reverse order of their making; another one is still open inside");
    }
    this.#open = false;
    Scope.#current = this.#outer;
    for (const tensor of this.#tensors) tensor.dispose();
  }

  [Symbol.dispose](): void {
    this.end();
  }
}

/** Tensors anywhere in a value made of arrays and plain objects. */
export function tensorsIn(value: unknown, isTensor: (v: unknown) => v is Tensor, found: Tensor[] = []): Tensor[] {
  if (isTensor(value)) found.push(value);
  else if (Array.isArray(value)) for (const item of value) tensorsIn(item, isTensor, found);
  else if (value !== null && typeof value === "object" && Object.getPrototypeOf(value) === Object.prototype) {
    for (const item of Object.values(value)) tensorsIn(item, isTensor, found);
  }
  return found;
}
