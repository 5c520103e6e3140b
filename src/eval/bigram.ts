import type { TokenFile } from "../data/token-file.js";

const STEP = 1 << 16;

function* pairs(file: TokenFile): Generator<[number, number]> {
  let previous: number | undefined;
  for (let at = 0; at < file.length; at += STEP) {
    for (const id of file.read(at, Math.min(STEP, file.length - at))) {
      if (previous !== undefined) yield [previous, id];
      previous = id;
    }
  }
}

/**
 * Held-out loss, in nats per token, of a model that looks at the last token only: counts of pairs, mixed with counts of
 * single tokens by Witten and Bell's rule, P(b|a) = (n(a,b) + u(a)·P(b)) / (n(a) + u(a)) with u(a) the number of
 * different tokens seen after a, and P(b) = (n(b) + 1) / (n + V). What every language model should beat.
 */
export function bigramLoss(train: TokenFile, val: TokenFile): number {
  const classes = train.info.vocabSize;
  const single = new Float64Array(classes).fill(1);
  const after = new Float64Array(classes);
  const kinds = new Float64Array(classes);
  const both = new Map<number, number>();
  for (const [a, b] of pairs(train)) {
    single[b]++;
    after[a]++;
    const key = a * classes + b;
    const before = both.get(key) ?? 0;
    if (before === 0) kinds[a]++;
    both.set(key, before + 1);
  }
  const total = single.reduce((x, y) => x + y, 0);
  let loss = 0;
  let count = 0;
  for (const [a, b] of pairs(val)) {
    const unigram = single[b] / total;
    const seen = after[a] + kinds[a];
    const probability = seen > 0 ? ((both.get(a * classes + b) ?? 0) + kinds[a] * unigram) / seen : unigram;
    loss -= Math.log(probability);
    count++;
  }
  return loss / count;
}
