import { isRecording, noGrad, record, withGrad } from "../tensor/tape.js";
import { scope, Tensor } from "../tensor/tensor.js";

/**
 * Runs `fn(x)` without keeping what it makes on the way; backward runs it again. Memory for time: one more forward.
 * Parameters that `fn` uses get their gradients as usual.
 *
 * @param fn a function of x alone that gives the same result each time
 * @param x [any], requiring a gradient (otherwise nothing is recorded)
 */
export function recompute(fn: (x: Tensor) => Tensor, x: Tensor): Tensor {
  if (!isRecording() || !x.requiresGrad) return fn(x);
  const out = noGrad(() => scope(() => fn(x).detach()));
  record("recompute", [x], [out], [x], ([upstream], [saved]) => {
    if (!upstream) return [];
    return [
      withGrad(() => {
        const leaf = new Tensor(saved.storage.retain(), saved.shape, saved.strides, saved.offset, {
          requiresGrad: true,
        });
        fn(leaf).backward(upstream);
        const gradient = leaf.grad?.detach();
        leaf.grad?.dispose();
        leaf.grad = null;
        return gradient;
      }),
    ];
  });
  return out;
}
