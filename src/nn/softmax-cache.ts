import { concat } from "../ops/copy/index.js";
import { exp } from "../ops/elementwise/index.js";
import { max } from "../ops/reduce/index.js";
import { softmaxAttention } from "../ops/softmax-attention/index.js";
import { noGrad } from "../tensor/tape.js";
import { scope, type Tensor } from "../tensor/tensor.js";

/**
 * Keys and values of all tokens so far: what softmax attention carries while it writes. Grows with every token, and so
 * does the time per token; kept for comparison with PowerState. No gradients.
 */
export class SoftmaxCache {
  /** Each longer than the next, so that there are few of them and a token is seldom copied. */
  #parts: { k: Tensor; v: Tensor }[] = [];
  #tokens = 0;

  get tokens(): number {
    return this.#tokens;
  }

  get bytes(): number {
    return this.#parts.reduce((n, { k, v }) => n + k.byteLength + v.byteLength, 0);
  }

  /**
   * Attention of new tokens over all so far. The first call may bring many tokens, later ones bring one.
   * @param q [B, t, Hq, d]
   * @param k [B, t, H, d]
   * @param v [B, t, H, e]
   */
  step(q: Tensor, k: Tensor, v: Tensor): Tensor {
    return noGrad(() =>
      scope(() => {
        const [batch, time, queryHeads, headDim] = q.shape;
        const [heads, valueDim] = [k.shape[2], v.shape[3]];
        const first = this.#tokens === 0;
        if (!first && time !== 1) {
          throw new RangeError(`SoftmaxCache.step: after the first call one token at a time, got ${time}`);
        }
        // A copy each: the cache must not hold the projection's memory.
        const own = (t: Tensor) => concat([t.detach()], 1).keep();
        this.#parts.push({ k: own(k), v: own(v) });
        this.#tokens += time;
        if (time > 1) return softmaxAttention(q, k, v);
        this.#join();
        const group = queryHeads / heads;
        const query = q.reshape([batch, heads, group, headDim]).mul(1 / Math.sqrt(headDim));
        const scores = concat(
          this.#parts.map((part) => query.matmul(part.k.permute([0, 2, 3, 1]))),
          3,
        );
        const weights = exp(scores.sub(max(scores, 3, { keepDims: true })));
        const sizes = this.#parts.map((part) => part.k.shape[1]);
        const sums = weights
          .split(sizes, 3)
          .map((w, n) => w.matmul(this.#parts[n].v.permute([0, 2, 1, 3])))
          .reduce((a, b) => a.add(b));
        return sums.div(weights.sum(3, { keepDims: true })).reshape([batch, 1, queryHeads, valueDim]);
      }),
    );
  }

  /** Joins the last parts while the last is not the shorter one, as a binary counter carries. */
  #join(): void {
    const length = (part: number) => this.#parts[part].k.shape[1];
    for (let last = this.#parts.length - 1; last > 0 && length(last) >= length(last - 1); last--) {
      const pair = this.#parts.splice(last - 1);
      const joined = (which: "k" | "v") =>
        scope(() =>
          concat(
            pair.map((part) => part[which]),
            1,
          ).keep(),
        );
      this.#parts.push({ k: joined("k"), v: joined("v") });
      for (const { k, v } of pair) {
        k.dispose();
        v.dispose();
      }
    }
  }

  clone(): SoftmaxCache {
    const copy = new SoftmaxCache();
    copy.#parts = this.#parts.map(({ k, v }) => ({ k: k.alias(), v: v.alias() }));
    copy.#tokens = this.#tokens;
    return copy;
  }

  dispose(): void {
    for (const { k, v } of this.#parts) {
      k.dispose();
      v.dispose();
    }
    this.#parts = [];
  }
}
