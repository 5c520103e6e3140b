import { Scope } from "./scope.js";
import type { Tensor } from "./tensor.js";

/** What a backward gets: one gradient for each output, undefined where none arrived; and the values it saved. */
export type Backward = (grads: (Tensor | undefined)[], saved: Tensor[]) => (Tensor | undefined)[];

/**
 * One recorded operation. Its inputs are the tensors whose gradients its backward returns, in order. What it saved is freed by a
 * backward, or when nothing can ask for one any more: its outputs are disposed, and so is all that was computed from them.
 */
export class GradNode {
  #backward: Backward | undefined;
  readonly #saved: Tensor[];
  /** Outputs that are not disposed, and nodes that hand gradients on to this one. */
  #users: number;
  /** Where each input's gradient goes on to: a node's output, or a leaf. */
  readonly inputs: { node: GradNode | undefined; output: number; tensor: Tensor | undefined }[];

  constructor(
    readonly name: string,
    inputs: readonly Tensor[],
    readonly outputs: number,
    saved: readonly Tensor[],
    backward: Backward,
  ) {
    this.#backward = backward;
    this.#users = outputs;
    this.#saved = saved.map((tensor) => tensor.alias());
    this.inputs = inputs.map((tensor) => ({
      node: tensor.node,
      output: tensor.nodeOutput,
      tensor: tensor.requiresGrad && !tensor.node ? tensor : undefined,
    }));
    for (const { node } of this.inputs) if (node) node.#users++;
  }

  /** One user less. */
  release(): void {
    // Not by recursion: graphs are as deep as programs are long.
    const left: GradNode[] = [this];
    for (let node = left.pop(); node; node = left.pop()) {
      if (--node.#users > 0) continue;
      node.free();
      for (const input of node.inputs) if (input.node) left.push(input.node);
    }
  }

  run(grads: (Tensor | undefined)[]): (Tensor | undefined)[] {
    if (!this.#backward) throw freedGraph(this.name);
    return this.#backward(grads, this.#saved);
  }

  get freed(): boolean {
    return this.#backward === undefined;
  }

  free(): void {
    this.#backward = undefined;
    for (const tensor of this.#saved) tensor.dispose();
    this.#saved.length = 0;
  }
}

function freedGraph(name: string): Error {
  return new Error(
    `backward: the graph behind ${name} was freed by an earlier backward; run the forward again, or add the losses before one backward`,
  );
}

let recording = true;

/** Runs `fn` without recording: nothing made inside has a gradient. */
export function noGrad<T>(fn: () => T): T {
  const before = recording;
  recording = false;
  try {
    return fn();
  } finally {
    recording = before;
  }
}

/** Runs `fn` with recording on, also inside `noGrad` and inside a backward, which does not record by itself. */
export function withGrad<T>(fn: () => T): T {
  const before = recording;
  recording = true;
  try {
    return fn();
  } finally {
    recording = before;
  }
}

export function isRecording(): boolean {
  return recording;
}

/**
 * Records an operation whose outputs were just computed. `saved` are the tensors that `backward` needs (views, kept
 * alive until the graph is freed whatever scopes do). Does nothing inside `noGrad` or when no input wants a gradient.
 */
export function record(
  name: string,
  inputs: readonly Tensor[],
  outputs: readonly Tensor[],
  saved: readonly Tensor[],
  backward: Backward,
): void {
  if (!recording || !inputs.some((tensor) => tensor.requiresGrad)) return;
  const node = new GradNode(name, inputs, outputs.length, saved, backward);
  for (const [k, output] of outputs.entries()) output.setNode(node, k);
}

/** Nodes that reach `root`, each after all nodes that use its outputs. */
function order(root: GradNode): GradNode[] {
  const sorted: GradNode[] = [];
  const seen = new Set<GradNode>([root]);
  const stack: { node: GradNode; next: number }[] = [{ node: root, next: 0 }];
  while (stack.length > 0) {
    const top = stack[stack.length - 1];
    if (top.next === top.node.inputs.length) {
      sorted.push(top.node);
      stack.pop();
      continue;
    }
    const input = top.node.inputs[top.next++].node;
    if (input && !seen.has(input)) {
      seen.add(input);
      stack.push({ node: input, next: 0 });
    }
  }
  return sorted.reverse();
}

/** Walks the graph behind `root`, adds to the `grad` of its leaves, and frees it. `sum` adds two tensors. */
export function backpropagate(root: Tensor, upstream: Tensor, sum: (a: Tensor, b: Tensor) => Tensor): void {
  const deliver = (leaf: Tensor, grad: Tensor) => {
    const total = leaf.grad ? sum(leaf.grad, grad) : grad.alias();
    leaf.grad?.dispose();
    Scope.keep(total);
    leaf.grad = total;
  };
  noGrad(() => {
    using _ = new Scope();
    if (!root.node) {
      deliver(root, upstream);
      return;
    }
    const nodes = order(root.node);
    const stale = nodes.find((node) => node.freed);
    if (stale) throw freedGraph(stale.name);
    const pending = new Map<GradNode, (Tensor | undefined)[]>();
    const slot = (node: GradNode) => {
      const grads = pending.get(node) ?? new Array<Tensor | undefined>(node.outputs).fill(undefined);
      pending.set(node, grads);
      return grads;
    };
    slot(root.node)[root.nodeOutput] = upstream.alias();
    for (const node of nodes) {
      const incoming = pending.get(node);
      pending.delete(node);
      using step = new Scope();
      const outgoing = incoming ? node.run(incoming) : [];
      for (const [k, grad] of outgoing.entries()) {
        const target = node.inputs[k];
        if (!grad || !(target.node || target.tensor)) continue;
        if (target.tensor) {
          deliver(target.tensor, grad);
          continue;
        }
        const grads = slot(target.node!);
        const before = grads[target.output];
        const total = before ? sum(before, grad) : grad.alias();
        before?.dispose();
        step.promote(total);
        grads[target.output] = total;
      }
      for (const grad of incoming ?? []) grad?.dispose();
      node.free();
    }
  });
}
